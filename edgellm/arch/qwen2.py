"""Qwen 2 and 2.5 (Alibaba, 2024): a Llama with biases on queries, keys and values, and with rotary halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.huggingface import (
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
    layer_types,
    window_hyperparameters,
)
from edgellm.arch.parts import logits_head, pre_norm_decoder, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return pre_norm_decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def hyperparameters(s: Settings) -> dict[str, Any]:
    """Qwen 2 and 3 may give their upper layers a window; none that was published does."""
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s)
    n_layers = shape["block_count"]
    if not s.get("use_sliding_window"):
        return shape
    from_layer = s.get("max_window_layers", n_layers)
    slides = layer_types(s, n_layers) or [layer >= from_layer for layer in range(n_layers)]
    return shape | window_hyperparameters(s.count("sliding_window", 4096), slides)


def settings(c: ModelConfig) -> dict[str, Any]:
    windows = [window for window in c.windows if window]
    return decoder_settings(c) | {
        "hidden_act": "silu",
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in c.windows],
    }


HUGGING_FACE = HuggingFace(
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    hyperparameters=hyperparameters,
    settings=settings,
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "max_window_layers": 28},
)
