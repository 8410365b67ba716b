"""Mixtral (Jiang et al., 2024): for GGUF a Llama whose layers have experts, two of eight for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.huggingface import (
    DECODER,
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
    window_hyperparameters,
)
from edgellm.arch.mixture import mixture_hyperparameters, mixture_of, mixture_settings
from edgellm.arch.stacks import Experts
from edgellm.graph.nodes.experts import Routing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, mixture=mixture_of(metadata, Routing(n_used=2)))


_MOE = "model.layers.{}.block_sparse_moe."


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s) | mixture_hyperparameters(s, n_ff=None)
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    return shape | window_hyperparameters(window, [window is not None] * shape["block_count"])


def _settings(c: ModelConfig) -> dict[str, Any]:
    mixture = mixture_settings(c, "num_local_experts", n_ff=None)
    return decoder_settings(c) | mixture | {"hidden_act": "silu", "sliding_window": c.windows[0]}


def _experts(ours: str, theirs: str, stacked: str, part: int = 0, n_parts: int = 1) -> dict[str, Experts]:
    in_memory = f"model.layers.{{}}.mlp.experts.{stacked}"
    split = f"{_MOE}experts.{{}}.{theirs}"
    return {f"blk.{{}}.ffn_{ours}_exps": Experts(split, f"{_MOE}experts.{stacked}", part, n_parts, in_memory=in_memory)}


HUGGING_FACE = HuggingFace(
    classes=("MixtralForCausalLM",),
    model_type="mixtral",
    hyperparameters=_hyperparameters,
    settings=_settings,
    tensors=DECODER | {"blk.{}.ffn_gate_inp": _MOE + "gate"},
    experts=_experts("gate", "w1", "gate_up_proj", 0, 2)
    | _experts("up", "w3", "gate_up_proj", 1, 2)
    | _experts("down", "w2", "down_proj"),
    paired=("attn_q", "attn_k"),
    defaults=DEFAULTS
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    null_stays=("num_key_value_heads", "sliding_window"),
    fits=lambda c: c.mixture is not None and len(set(c.windows)) == 1,
)
