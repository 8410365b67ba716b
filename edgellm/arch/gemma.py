"""Gemma 1 (Google, 2024): embeddings scaled by sqrt(n_embd), heads wider than n_embd / n_heads, gated by GELU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DEFAULTS,
    HuggingFace,
    Settings,
    activation_hyperparameters,
    decoder_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(activation="gelu")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE, embedding_scale=math.sqrt(Keys(metadata).count("embedding_length")))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("use_bidirectional_attention", False)
    # The first releases say "gelu" and mean its approximation by tanh; transformers takes it so too.
    activation = {} if s.get("hidden_act") == "gelu" else activation_hyperparameters(s, STYLE)
    return decoder_hyperparameters(s) | activation


HUGGING_FACE = HuggingFace(
    classes=("GemmaForCausalLM",),
    model_type="gemma",
    hyperparameters=_hyperparameters,
    # Its checkpoints hold how much a norm's weight differs from one.
    offsets=dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), 1.0),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
)  # fmt: skip
