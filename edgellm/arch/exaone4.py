"""EXAONE 4 (LG AI Research, 2025): norms after each half of a layer and of every head of queries and keys.

Where some layers have a window, the others turn nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, all_but_every, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
    norms_after,
    pattern_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(order="after", head_norms="heads")
PERIOD = 4  # of so many layers, the last sees everything
_PERIOD_KEY = "sliding_window_pattern"  # its name in config.json; "LLLG" in the first checkpoints


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    windows = keys.windows(keys.count("block_count"), PERIOD)
    has_windows = keys.count("attention.sliding_window", 0, least=0) > 0
    rotates = tuple(window is not None or not has_windows for window in windows)
    return decoder_config(metadata, STYLE, windows=windows, rotates=rotates)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s)
    if s.get("sliding_window") is None:
        return shape
    n_layers = shape["block_count"]
    slides = layer_types(s, n_layers)
    if slides is None:  # and only then does the period count
        period = PERIOD if s.get(_PERIOD_KEY) == "LLLG" else s.count(_PERIOD_KEY, PERIOD)
        slides = all_but_every(period, n_layers)
    shape["attention.sliding_window"] = s.count("sliding_window")
    return shape | pattern_hyperparameters(slides, PERIOD)


HUGGING_FACE = HuggingFace(
    classes=("Exaone4ForCausalLM",),
    model_type="exaone4",
    hyperparameters=_hyperparameters,
    tensors=norms_after(DECODER | HEAD_NORMS),
    defaults=DEFAULTS
    | {
        "intermediate_size": 16384, "num_key_value_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
    },
    null_stays=("num_key_value_heads", "sliding_window"),
)  # fmt: skip
