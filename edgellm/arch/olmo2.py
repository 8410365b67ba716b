"""OLMo 2 (Ai2, 2024): norms after attention and feed-forward, and of queries and keys as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    norms_after,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(order="after", head_norms="rows")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s)


HUGGING_FACE = HuggingFace(
    classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    hyperparameters=_hyperparameters,
    tensors=norms_after(DECODER | HEAD_NORMS),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS | {"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
)
