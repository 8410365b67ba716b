"""Qwen 3 Next (Alibaba, 2025): gated delta nets as in Qwen 3.5, whose forerunner it is, and experts in every layer.

Heads of values that share a head of keys are neighbours, and checkpoints have what makes queries, keys, values and
gates in one matrix, by heads of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch import delta_net, qwen2moe
from edgellm.arch import delta_net_checkpoint as checkpoint
from edgellm.arch.config import ModelConfig
from edgellm.arch.delta_net import DeltaNet, delta_net_config
from edgellm.arch.huggingface import ATTENTION_BIASES, HuggingFace, Settings
from edgellm.arch.mixture import EXPERTS, every_layer_has_experts, mixture_hyperparameters, mixture_of
from edgellm.arch.parts import logits_head
from edgellm.arch.stacks import SomeRows
from edgellm.graph.nodes.experts import Routing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return delta_net_config(metadata, is_grouped=True, mixture=mixture_of(metadata, Routing(n_used=10)))


body = delta_net.body
head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    every_layer_has_experts(s)
    shape = checkpoint.delta_net_hyperparameters(s) | mixture_hyperparameters(s)
    del shape["rope.dimension_sections"]  # it reads text only
    norm = {} if s.flag("norm_topk_prob") else {"expert_weights_norm": False}
    return shape | {"expert_shared_feed_forward_length": s.count("shared_expert_intermediate_size")} | norm


def _parts(c: ModelConfig) -> list[NDArray[np.int32]]:
    """Rows of all queries, keys, values and gates, which every head of keys has one behind the other."""
    net = c.recurrent
    assert isinstance(net, DeltaNet)
    of_values = net.n_heads // net.n_key_heads * net.value_dim
    ends = np.cumsum([net.key_dim, net.key_dim, of_values, of_values])
    rows = np.arange(net.n_key_heads * ends[-1], dtype=np.int32).reshape(net.n_key_heads, -1)
    return [part.reshape(-1) for part in np.split(rows, ends[:-1], axis=1)]


_NET = "model.layers.{}.linear_attn."
_SPLIT = ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta")
_N_ALL = lambda c: sum(map(len, _parts(c)))  # noqa: E731
HUGGING_FACE = HuggingFace(
    classes=("Qwen3NextForCausalLM",),
    model_type="qwen3_next",
    hyperparameters=_hyperparameters,
    tensors={
        ours: theirs for ours, theirs in checkpoint.TENSORS.items() if "ffn_" not in ours and not ours.endswith(_SPLIT)
    }
    | qwen2moe.MIXTURE
    | {"blk.{}.ssm_ba": _NET + "in_proj_ba"},
    experts=EXPERTS
    | {
        "blk.{}.attn_qkv": SomeRows(_NET + "in_proj_qkvz", lambda c: np.concatenate(_parts(c)[:3]), _N_ALL),
        "blk.{}.attn_gate": SomeRows(_NET + "in_proj_qkvz", lambda c: _parts(c)[3], _N_ALL),
    },
    promises=qwen2moe.PROMISES,
    vectors=checkpoint.VECTORS,
    squeezed=("ssm_conv1d",),
    offsets=checkpoint.OFFSETS,
    changed=checkpoint.CHANGED,
    biases=ATTENTION_BIASES,
    defaults=checkpoint.DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48, "num_key_value_heads": 2,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts": 512,
        "num_experts_per_tok": 10, "norm_topk_prob": True,
    },
    null_stays=(),
    rope=checkpoint.partial_rope,
)  # fmt: skip
