"""Qwen 3 with experts (Alibaba, 2025): as the dense one, with eight of 128 experts in every layer and no shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import qwen2
from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import ATTENTION_BIASES, DECODER, HEAD_NORMS, HuggingFace, Settings
from edgellm.arch.mixture import (
    EXPERTS,
    ROUTER,
    every_layer_has_experts,
    mixture_hyperparameters,
    mixture_of,
    mixture_settings,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value
from edgellm.graph.nodes.experts import Routing

STYLE = Style(head_norms="heads")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE, mixture=mixture_of(metadata, Routing(n_used=8)))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    """Weights that are not normalized are said, which others may pass over; no published model has such.

    A window is that of all layers: max_window_layers, which others follow, is read by nobody here.
    """
    every_layer_has_experts(s)
    norm = {} if s.flag("norm_topk_prob") else {"expert_weights_norm": False}
    return qwen2.hyperparameters(s, slides_from=0) | mixture_hyperparameters(s) | norm


def _settings(c: ModelConfig) -> dict[str, Any]:
    assert c.mixture is not None
    return qwen2.settings(c) | mixture_settings(c) | {"norm_topk_prob": c.mixture.routing.normalize}


HUGGING_FACE = HuggingFace(
    classes=("Qwen3MoeForCausalLM",),
    model_type="qwen3_moe",
    hyperparameters=_hyperparameters,
    settings=_settings,
    tensors=DECODER | HEAD_NORMS | ROUTER,
    experts=EXPERTS,
    biases=ATTENTION_BIASES,
    defaults=qwen2.QWEN_DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    },
    null_stays=qwen2.NULL_STAYS,
)  # fmt: skip
