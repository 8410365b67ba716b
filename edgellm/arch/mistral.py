"""Mistral (Jiang et al., 2023): for GGUF a Llama, some of whose versions look back over a window of positions only."""

from __future__ import annotations

from typing import Any

from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import (
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
    layer_types,
    window_hyperparameters,
)


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s)
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    n_layers = shape["block_count"]
    return shape | window_hyperparameters(window, layer_types(s, n_layers) or [window is not None] * n_layers)


def _settings(c: ModelConfig) -> dict[str, Any]:
    return decoder_settings(c) | {"hidden_act": "silu", "sliding_window": c.windows[0]}


HUGGING_FACE = HuggingFace(
    classes=("MistralForCausalLM", "MistralModel"),
    model_type="mistral",
    hyperparameters=_hyperparameters,
    settings=_settings,
    paired=("attn_q", "attn_k"),
    defaults=DEFAULTS
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    null_stays=("num_key_value_heads", "sliding_window"),
    fits=lambda c: all(c.windows) and c.mixture is None,
)
