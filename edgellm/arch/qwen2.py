"""Qwen 2 and 2.5 (Alibaba, 2024): a Llama with biases on queries, keys and values, and with rotary halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
    layer_types,
    window_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def hyperparameters(s: Settings, slides_from: int | None = None) -> dict[str, Any]:
    """Qwen 2 and 3 may give their upper layers a window; none that was published does.

    slides_from:  the first of these layers, where max_window_layers does not tell.
    """
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s)
    n_layers = shape["block_count"]
    window = s.count("sliding_window") if s.flag("use_sliding_window") and s.get("sliding_window") is not None else None
    told = s.count("max_window_layers", least=0)
    from_layer = told if slides_from is None else slides_from
    slides = layer_types(s, n_layers) or [window is not None and layer >= from_layer for layer in range(n_layers)]
    return shape | window_hyperparameters(window, slides)


def settings(c: ModelConfig) -> dict[str, Any]:
    windows = [window for window in c.windows if window]
    return decoder_settings(c) | {
        "hidden_act": "silu",
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in c.windows],
    }


# Of both, what transformers takes for what config.json leaves out.
QWEN_DEFAULTS = DEFAULTS | {
    "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096,
    "max_window_layers": 28,
}  # fmt: skip
NULL_STAYS = ("num_key_value_heads", "sliding_window")

HUGGING_FACE = HuggingFace(
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    model_type="qwen2",
    hyperparameters=hyperparameters,
    settings=settings,
    biases=dict.fromkeys(("attn_q", "attn_k", "attn_v")),
    defaults=QWEN_DEFAULTS,
    null_stays=NULL_STAYS,
)
