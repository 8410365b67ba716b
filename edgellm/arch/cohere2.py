"""Command R7B and A (Cohere, 2024): as Command R, with windows in three layers of four; the fourth turns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import command_r
from edgellm.arch.config import Keys, ModelConfig, all_but_every, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import ATTENTION_BIASES, HuggingFace, Settings, layer_types, pattern_hyperparameters
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

PERIOD = 4  # of so many layers, the last sees everything


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    windows = keys.windows(keys.count("block_count"), PERIOD)
    return decoder_config(
        metadata,
        command_r.STYLE,
        windows=windows,
        rotates=tuple(window is not None for window in windows),
        logit_scale=keys.number("logit_scale", zero=1.0),
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    shape = command_r.hyperparameters(s)
    n_layers, period = shape["block_count"], s.count("sliding_window_pattern", PERIOD)
    slides = layer_types(s, n_layers) or all_but_every(period, n_layers)
    shape["attention.sliding_window"] = s.count("sliding_window")
    return shape | pattern_hyperparameters(slides, PERIOD)


HUGGING_FACE = HuggingFace(
    classes=("Cohere2ForCausalLM",),
    model_type="cohere2",
    hyperparameters=_hyperparameters,
    tensors=command_r.WITHOUT_FFN_NORM,
    biases=ATTENTION_BIASES,
    defaults=command_r.COHERE_DEFAULTS | {"rope_theta": 10000.0, "sliding_window": 4096},
)
