"""LFM2 with experts (Liquid AI, 2025): as the dense one, with experts chosen by a logistic, but in the first layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import short_conv
from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import DEFAULTS, HuggingFace, Settings
from edgellm.arch.mixture import mixture_hyperparameters, mixture_of
from edgellm.arch.parts import logits_head
from edgellm.arch.promises import where
from edgellm.arch.short_conv import short_conv_config, short_conv_hyperparameters
from edgellm.arch.stacks import Experts
from edgellm.graph.nodes.experts import Routing

SIGMOID = 2  # as GGUF counts it
_FEED_FORWARD = "model.layers.{}.feed_forward."


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return short_conv_config(metadata, mixture=mixture_of(metadata, Routing(n_used=4, scoring="sigmoid")))


body = short_conv.body
head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    shape = short_conv_hyperparameters(s) | mixture_hyperparameters(s)
    return shape | {
        "leading_dense_block_count": s.count("num_dense_layers", least=0),
        "expert_gating_func": SIGMOID,
        "expert_weights_scale": s.number("routed_scaling_factor"),
        "expert_weights_norm": s.flag("norm_topk_prob"),
    }


def _experts(ours: str, theirs: str, stacked: str, part: int = 0, n_parts: int = 1) -> dict[str, Experts]:
    split = f"{_FEED_FORWARD}experts.{{}}.{theirs}"
    return {f"blk.{{}}.ffn_{ours}_exps": Experts(split, f"{_FEED_FORWARD}experts.{stacked}", part, n_parts)}


HUGGING_FACE = HuggingFace(
    classes=("Lfm2MoeForCausalLM",),
    model_type="lfm2_moe",
    hyperparameters=_hyperparameters,
    aliases=short_conv.ALIASES,
    first=short_conv.FIRST,
    tensors=short_conv.TENSORS | {"blk.{}.ffn_gate_inp": _FEED_FORWARD + "gate"},
    experts=_experts("gate", "w1", "gate_up_proj", 0, 2)
    | _experts("up", "w3", "gate_up_proj", 1, 2)
    | _experts("down", "w2", "down_proj"),
    squeezed=("conv",),
    vectors={"blk.{}.exp_probs_b.bias": _FEED_FORWARD + "expert_bias"},
    promises={"exp_probs_b.bias": where("use_expert_bias")},
    dense_first=("num_dense_layers",),
    biases=short_conv.BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128000, "tie_word_embeddings": True, "rope_theta": 1e6,
        "conv_L_cache": 3, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.0, "norm_topk_prob": True, "use_expert_bias": True,
    },
    null_stays=(),
)  # fmt: skip
