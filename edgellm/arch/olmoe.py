"""OLMoE (Muennighoff et al., 2024): eight of 64 experts, and a norm of all queries and all keys together."""

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
    decoder_settings,
)
from edgellm.arch.mixture import EXPERTS, ROUTER, mixture_hyperparameters, mixture_of, mixture_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value
from edgellm.graph.nodes.experts import Routing

STYLE = Style(head_norms="rows")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE, mixture=mixture_of(metadata, Routing(n_used=8, normalize=False)))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    s.expect("clip_qkv", None)
    # An expert is as wide as config.json says that a feed-forward is.
    norm = {"expert_weights_norm": True} if s.flag("norm_topk_prob") else {}
    return decoder_hyperparameters(s) | mixture_hyperparameters(s, n_ff=None) | norm


def _settings(c: ModelConfig) -> dict[str, Any]:
    assert c.mixture is not None
    own = {"hidden_act": "silu", "norm_topk_prob": c.mixture.routing.normalize}
    return decoder_settings(c) | mixture_settings(c, n_ff=None) | own


HUGGING_FACE = HuggingFace(
    classes=("OlmoeForCausalLM",),
    model_type="olmoe",
    hyperparameters=_hyperparameters,
    settings=_settings,
    tensors=DECODER | HEAD_NORMS | ROUTER,
    experts=EXPERTS,
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8,
    },
)  # fmt: skip
