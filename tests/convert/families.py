"""Checkpoints of decoders with attention, as small as their parts allow: what differs between families, each once."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

WINDOW = 48
_SHAPE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
_NAMES_OF_2019 = {
    "vocab_size": 384, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_PARTIAL = _ROPE | {"partial_rotary_factor": 0.5}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
         "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
         "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
         "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0]}  # fmt: skip
_ALTERNATING = ["sliding_attention", "full_attention"]


_DELTA: dict[str, Any] = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 32, "rope_parameters": _PARTIAL, "attention_bias": True,
}  # fmt: skip


def _llama(**changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    return t.LlamaForCausalLM, t.LlamaConfig, changes


def _family(name: str, **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    return getattr(t, f"{name}ForCausalLM"), getattr(t, f"{name}Config"), changes


def _gemma3n(**changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    shape = {
        "num_hidden_layers": 6, "layer_types": _ALTERNATING * 3, "sliding_window": WINDOW, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 384, "tie_word_embeddings": True,
        "intermediate_size": [96, 128, 96, 96, 64, 64], "laurel_rank": 4,
        "activation_sparsity_pattern": [0.8, 0.5, 0.0, 0.0, 0.0, 0.0],
    }  # fmt: skip
    return t.Gemma3nForCausalLM, t.Gemma3nTextConfig, shape | changes


def _gemma4(**changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    shape = {
        "num_hidden_layers": 6, "layer_types": _ALTERNATING * 3, "sliding_window": WINDOW, "global_head_dim": 32,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 384, "tie_word_embeddings": True,
    }  # fmt: skip
    return t.Gemma4ForCausalLM, t.Gemma4TextConfig, shape | changes


FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama, yarn": _llama(rope_parameters=_YARN),
    "llama, yarn with a factor of its own": _llama(rope_parameters=_YARN | {"attention_factor": 1.3}),
    "llama, yarn with mscale": _llama(rope_parameters=_YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}),
    "llama, dynamic": _llama(
        rope_parameters=_ROPE | {"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=512
    ),
    "gemma": _family("Gemma", tie_word_embeddings=True),
    "gemma2": _family("Gemma2", sliding_window=WINDOW, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
                      final_logit_softcapping=3.0, tie_word_embeddings=True),
    "gemma2, no caps, own layers": _family(
        "Gemma2", sliding_window=WINDOW, query_pre_attn_scalar=16, attn_logit_softcapping=None,
        final_logit_softcapping=None, layer_types=["full_attention", *_ALTERNATING], tie_word_embeddings=True,
    ),
    "gemma3n": _gemma3n(),
    "gemma3n, one width, all gates": _gemma3n(
        intermediate_size=96, activation_sparsity_pattern=[0.0] * 6, num_kv_shared_layers=0, altup_active_idx=1
    ),
    "gemma4": _gemma4(),
    "gemma4, keys are values": _gemma4(
        attention_k_eq_v=True, num_global_key_value_heads=1, final_logit_softcapping=3.0
    ),
    "gemma4, shared": _gemma4(num_kv_shared_layers=3, use_double_wide_mlp=True),
    "gemma4, no embeddings of layers": _gemma4(hidden_size_per_layer_input=0),
    "phi3": _family("Phi3", sliding_window=WINDOW),
    "phi3, long-rope": _family("Phi3", rope_parameters=_LONG, original_max_position_embeddings=64),
    "phi3, partial": _family("Phi3", rope_parameters=_PARTIAL, tie_word_embeddings=True),
    "smollm3": _family("SmolLM3", num_hidden_layers=5, no_rope_layer_interval=4, attention_bias=True),
    "smollm3, own layers": _family("SmolLM3", no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=WINDOW,
                                   layer_types=["full_attention", *_ALTERNATING]),
    "granite": _family("Granite", attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4,
                       logits_scaling=2.5, mlp_bias=True),
    "olmo2": _family("Olmo2", attention_bias=True),
    "olmo3": _family("Olmo3", sliding_window=WINDOW, num_hidden_layers=5, rope_parameters={
        "full_attention": _YARN | {"attention_factor": 1.2}, "sliding_attention": _ROPE}),
    "olmo3, own layers": _family("Olmo3", sliding_window=WINDOW, attention_bias=True, layer_types=[
        "full_attention", *_ALTERNATING], rope_parameters={
            "full_attention": _ROPE | {"rope_theta": 5e4}, "sliding_attention": _ROPE}),
    "olmo3, windows everywhere": _family("Olmo3", sliding_window=WINDOW, layer_types=["sliding_attention"] * 3),
    "starcoder2": _family("Starcoder2", sliding_window=WINDOW),
    "starcoder2, no biases": _family("Starcoder2", use_bias=False, tie_word_embeddings=True),
    "stablelm": _family("StableLm", rope_parameters=_PARTIAL, use_qkv_bias=True),
    "stablelm, parallel": _family("StableLm", rope_parameters=_PARTIAL, use_parallel_residual=True, qk_layernorm=True),
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config, _NAMES_OF_2019 | {"n_inner": 100}),
    "gptneox": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig, {"rope_parameters": _PARTIAL}),
    "gptneox, one after the other": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig,
                                     {"use_parallel_residual": False, "attention_bias": False,
                                      "hidden_act": "gelu_fast"}),
    "falcon": _family("Falcon", bias=True, head_dim=...),
    "falcon, two norms": _family("Falcon", new_decoder_architecture=True, num_kv_heads=2, head_dim=...),
    "falcon, every head its own keys": _family("Falcon", multi_query=False, head_dim=...),
    "command-r": _family("Cohere", logit_scale=2.0, tie_word_embeddings=True),
    "command-r, norms of heads": _family("Cohere", logit_scale=1.5, use_qk_norm=True, attention_bias=True,
                                         tie_word_embeddings=True),
    "cohere2": _family("Cohere2", logit_scale=1.5, sliding_window=WINDOW, num_hidden_layers=5,
                       tie_word_embeddings=True),
    "exaone4": _family("Exaone4", sliding_window=WINDOW, num_hidden_layers=5),
    "exaone4, no window": _family("Exaone4", sliding_window=None, layer_types=["full_attention"] * 3),
    "ernie4_5": _family("Ernie4_5", use_bias=True),
    "hunyuan-dense": _family("HunYuanDenseV1", rope_parameters=_ROPE | {"rope_type": "dynamic", "alpha": 50.0,
                                                                        "factor": 1.0}),
    "mistral3": _family("Ministral3", rope_parameters=_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0,
                                                               "llama_4_scaling_beta": 0.3}),
    "mistral3, window": _family("Ministral3", sliding_window=WINDOW, rope_parameters=_YARN | {
        "llama_4_scaling_beta": 0.0}),
    "lfm2": _family("Lfm2", num_hidden_layers=4, block_auto_adjust_ff_dim=False, head_dim=...,
                    layer_types=["conv", "full_attention", "conv", "conv"]),
    "lfm2, biases": _family("Lfm2", conv_bias=True, conv_L_cache=5, block_multiple_of=32, full_attn_idxs=[1],
                            head_dim=...),
    "qwen35": (t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig, _DELTA),
    "qwen35, attention in odd layers": (t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig, _DELTA | {
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]}),
    "qwen35, shared keys, every other layer": (
        t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig, _DELTA | {
            "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 3, "tie_word_embeddings": True,
            "layer_types": ["linear_attention", "full_attention"] * 2}),
    "bitnet": _family("BitNet"),
    "bitnet, silu": _family("BitNet", hidden_act="silu"),
    "bloom": (t.BloomForCausalLM, t.BloomConfig,
              {"vocab_size": 384, "hidden_size": 96, "n_layer": 3, "n_head": 6, "bos_token_id": 0, "eos_token_id": 1}),
    "mpt": (t.MptForCausalLM, t.MptConfig,
            {"vocab_size": 384, "d_model": 96, "n_layers": 3, "n_heads": 6, "max_seq_len": 512, "bos_token_id": 0,
             "eos_token_id": 1}),
}  # fmt: skip


def config_of(name: str) -> Any:
    """The family's configuration: the common shape, if it has these names, and what the case changes or leaves out."""
    _, config_class, changes = FAMILIES[name]
    is_old = {"n_layer", "n_layers"} & changes.keys()
    settings = changes if is_old else _SHAPE | changes
    return config_class(**{key: value for key, value in settings.items() if value is not ...})


def model_of(name: str) -> Any:
    """A model with random weights, in float32; biases and norms too, which otherwise start as zeros and ones."""
    model_class, _, _ = FAMILIES[name]
    torch.manual_seed(3)
    model = model_class(config_of(name)).eval()
    with torch.no_grad():
        for part, x in model.named_parameters():
            x += torch.randn_like(x) * 0.1
            if "q_norm" in part:  # where scores are not scaled they would be so large that float32 shows
                x *= 0.3
        for part, x in model.named_buffers():
            if part.endswith("layer_scalar"):
                x *= 0.8
    return model
