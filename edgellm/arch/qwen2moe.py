"""Qwen 1.5 and 2 with experts (Alibaba, 2024): beside those chosen, one for every token, behind a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import qwen2
from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import DECODER, HuggingFace, Settings
from edgellm.arch.mixture import (
    EXPERTS,
    ROUTER,
    every_layer_has_experts,
    mixture_hyperparameters,
    mixture_of,
    mixture_settings,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.promises import ALWAYS
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value
from edgellm.graph.nodes.experts import Routing

_SHARED = "model.layers.{}.mlp.shared_expert"
MIXTURE = (
    ROUTER
    | {f"blk.{{}}.ffn_{part}_shexp": f"{_SHARED}.{part}_proj" for part in ("gate", "up", "down")}
    | {"blk.{}.ffn_gate_inp_shexp": f"{_SHARED}_gate"}
)

# Beside what every layer with experts has.
PROMISES = {"ffn_gate_inp_shexp": ALWAYS}


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, mixture=mixture_of(metadata, Routing(n_used=4, normalize=False)))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    every_layer_has_experts(s)
    s.expect("norm_topk_prob", False)
    return qwen2.hyperparameters(s) | mixture_hyperparameters(s) | {
        "expert_shared_feed_forward_length": s.count("shared_expert_intermediate_size")
    }  # fmt: skip


def _settings(c: ModelConfig) -> dict[str, Any]:
    assert c.mixture is not None
    own = {"shared_expert_intermediate_size": c.mixture.n_ff_shared, "norm_topk_prob": c.mixture.routing.normalize}
    return qwen2.settings(c) | mixture_settings(c) | own


HUGGING_FACE = HuggingFace(
    classes=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    hyperparameters=_hyperparameters,
    settings=_settings,
    tensors=DECODER | MIXTURE,
    experts=EXPERTS,
    promises=PROMISES,
    biases=dict.fromkeys(("attn_q", "attn_k", "attn_v"), "qkv_bias"),
    defaults=qwen2.QWEN_DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts": 60, "num_experts_per_tok": 4, "qkv_bias": True,
    },
    null_stays=qwen2.NULL_STAYS,
)  # fmt: skip
