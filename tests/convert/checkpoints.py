"""Tiny checkpoints with random weights, in folders as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.arch import tiny  # registers attention to keys and values in float16

from .mixtures import CLASSES, MIXTURES

N_VOCAB = 384
WINDOW = 48

_SHAPE: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
_SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

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
}  # fmt: skip


def model_of(name: str) -> Any:
    """A model with random weights; biases and norms too, which otherwise start as zeros and ones."""
    model_class, config_class, changes = (FAMILIES | MIXTURES)[name]
    torch.manual_seed(3)
    settings = {key: value for key, value in (_SHAPE | changes).items() if value is not ...}
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for x in (*model.parameters(), *(x for name, x in model.named_buffers() if name.endswith("correction_bias"))):
            x += torch.randn_like(x) * 0.1
    return model


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Save a model and a tokenizer into `folder`; returns the model in float32, to compare with."""
    model_of(name).to(dtype).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    if name in CLASSES:
        edit_json(folder / "config.json", architectures=[CLASSES[name]])
    return load(folder)


def load(folder: Path) -> Any:
    """The model of a folder, in float32; experts one by one, which transformers can do in float64 too."""
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
