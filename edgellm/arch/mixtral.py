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


HUGGING_FACE = HuggingFace(
    classes=("MixtralForCausalLM",),
    model_type="mixtral",
    hyperparameters=_hyperparameters,
    settings=_settings,
    tensors=DECODER | {"blk.{}.ffn_gate_inp": _MOE + "gate"},
    experts={
        "blk.{}.ffn_gate_exps": Experts(_MOE + "experts.{}.w1", _MOE + "experts.gate_up_proj", part=0, n_parts=2),
        "blk.{}.ffn_up_exps": Experts(_MOE + "experts.{}.w3", _MOE + "experts.gate_up_proj", part=1, n_parts=2),
        "blk.{}.ffn_down_exps": Experts(_MOE + "experts.{}.w2", _MOE + "experts.down_proj"),
    },
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
