"""Granite 3 (IBM, 2024): a Llama that scales embeddings, what layers add, scores and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DEFAULTS,
    FEED_FORWARD_BIASES,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any], **more: Any) -> ModelConfig:
    """more: what a family has beside it, see `decoder_config`."""
    keys = Keys(metadata)
    return decoder_config(
        metadata,
        embedding_scale=keys.number("embedding_scale", 1.0, zero=1.0),
        residual_scale=keys.number("residual_scale", 1.0, zero=1.0),
        logit_scale=1 / keys.number("logit_scale", 1.0, zero=1.0),  # they are divided by it
        **more,
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s) | {
        "attention.scale": s.number("attention_multiplier"),
        "embedding_scale": s.number("embedding_multiplier"),
        "residual_scale": s.number("residual_multiplier"),
        "logit_scale": s.number("logits_scaling"),
    }


SCALES = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
HUGGING_FACE = HuggingFace(
    classes=("GraniteForCausalLM",),
    model_type="granite",
    hyperparameters=hyperparameters,
    paired=("attn_q", "attn_k"),
    biases=ATTENTION_BIASES | FEED_FORWARD_BIASES,
    defaults=DEFAULTS | {"intermediate_size": 11008, "max_position_embeddings": 2048, **dict.fromkeys(SCALES, 1.0)},
    # Null is no scale: what transformers makes of it depends on how it computes attention, or it fails.
    null_stays=("num_key_value_heads", *SCALES),
)
