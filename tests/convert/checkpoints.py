"""Tiny checkpoints with random weights, in folders as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.arch import tiny  # registers attention to keys and values in float16

N_VOCAB = 384
WINDOW = 48

_SHAPE: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
         "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
_DEEP = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2,
         "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
         "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": 8}  # fmt: skip


def _mixture(name: str, **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    return getattr(t, f"{name}ForCausalLM"), getattr(t, f"{name}Config"), changes


FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama 3, scaled rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _LLAMA3, "head_dim": 64}),
    "llama, heads of 10": (LlamaForCausalLM, LlamaConfig, {"head_dim": 10}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "mistral, no window": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2, window": (Qwen2ForCausalLM, Qwen2Config, _SLIDING),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {
        "tie_word_embeddings": True, "num_hidden_layers": 7, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3, own pattern": (Gemma3ForCausalLM, Gemma3TextConfig, {
        "tie_word_embeddings": True, "sliding_window": WINDOW, "query_pre_attn_scalar": 30,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
    "mixtral, window": (MixtralForCausalLM, MixtralConfig, {"sliding_window": WINDOW, "num_experts_per_tok": 1}),
    "qwen2moe": (Qwen2MoeForCausalLM, Qwen2MoeConfig, _EXPERTS | {"shared_expert_intermediate_size": 80}),
    "qwen3moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, _EXPERTS | {"norm_topk_prob": True}),
    "qwen3moe, not normalized": (Qwen3MoeForCausalLM, Qwen3MoeConfig, _EXPERTS),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"num_experts": 8, "num_experts_per_tok": 2}),
    "granitemoe": _mixture("GraniteMoe", num_local_experts=6, attention_multiplier=0.2, embedding_multiplier=3.0,
                           residual_multiplier=0.4, logits_scaling=2.5, tie_word_embeddings=True),
    "ernie4_5-moe": _mixture("Ernie4_5_Moe", moe_num_experts=8, moe_k=3, moe_intermediate_size=32,
                             moe_num_shared_experts=2),
    "ernie4_5-moe, no shared expert": _mixture("Ernie4_5_Moe", moe_num_experts=8, moe_k=3, moe_intermediate_size=32,
                                               moe_num_shared_experts=0, moe_layer_start_index=0),
    "gpt-oss": _mixture("GptOss", num_local_experts=8, num_experts_per_tok=2, sliding_window=WINDOW,
                        rope_parameters=_YARN | {"truncate": False}, layer_types=None),
    "gpt-oss, own layers": _mixture("GptOss", num_local_experts=4, num_experts_per_tok=4, sliding_window=WINDOW,
                                    layer_types=["full_attention", "full_attention", "sliding_attention"]),
    "deepseek v2": _mixture("DeepseekV2", **_DEEP | {"q_lora_rank": None}, topk_method="greedy",
                            routed_scaling_factor=1.5),
    "deepseek v2, groups": _mixture("DeepseekV2", **_DEEP, topk_method="group_limited_greedy", n_group=4,
                                    topk_group=2, rope_parameters=_YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}),
    "deepseek v3": _mixture("DeepseekV3", **_DEEP, n_group=4, topk_group=2, rope_parameters=_YARN | {
        "mscale": 1.0, "mscale_all_dim": 1.0}),
    "glm 4.7 flash": _mixture("Glm4MoeLite", **_DEEP | {"first_k_dense_replace": ...}, norm_topk_prob=False,
                              mlp_layer_types=["dense", "sparse", "sparse"]),
}  # fmt: skip


def model_of(name: str) -> Any:
    """A model with random weights; biases and norms too, which otherwise start as zeros and ones."""
    model_class, config_class, changes = FAMILIES[name]
    torch.manual_seed(3)
    settings = {key: value for key, value in (_SHAPE | changes).items() if value is not ...}
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for x in model.parameters():
            x += torch.randn_like(x) * 0.1
    return model


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Save a model and a tokenizer into `folder`; returns the model in float32, to compare with."""
    model_of(name).to(dtype).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    # Experts one by one, which is exact in float64 too.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


def logits(model: Any, ids: list[int]) -> Any:
    """float32 [n_tokens, n_vocab]"""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, with N_VOCAB tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    text = Path(tiny.__file__).read_text(encoding="utf-8")
    raw.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; `...` takes one away."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
