"""Llama (Touvron et al., 2023) and its like: Llama 1 to 3.2, TinyLlama, SmolLM, and with experts Mixtral.

Norm before each half of a layer, rotary positions on neighbouring pairs (the converter has permuted the
projections for it), SiLU-gated feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config, has_experts
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DEFAULTS,
    FEED_FORWARD_BIASES,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    if has_experts(metadata):
        from edgellm.arch import mixtral  # which few files need

        return mixtral.configure(metadata)
    return decoder_config(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s)


def _settings(c: ModelConfig) -> dict[str, Any]:
    return decoder_settings(c) | {"hidden_act": "silu"}


HUGGING_FACE = HuggingFace(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    model_type="llama",
    hyperparameters=_hyperparameters,
    settings=_settings,
    paired=("attn_q", "attn_k"),
    biases=ATTENTION_BIASES | FEED_FORWARD_BIASES,
    defaults=DEFAULTS | {"intermediate_size": 11008, "max_position_embeddings": 2048},
    fits=lambda c: not any(c.windows) and c.mixture is None,
)
