"""Granite 3 with experts (IBM, 2024): as the dense one, with experts, whose gates and ups its checkpoints join."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import granite
from edgellm.arch.config import ModelConfig
from edgellm.arch.huggingface import ATTENTION_BIASES, DECODER, DEFAULTS, HuggingFace, Settings
from edgellm.arch.mixture import mixture_hyperparameters, mixture_of
from edgellm.arch.stacks import Experts
from edgellm.graph.nodes.experts import Routing

_MOE = "model.layers.{}.block_sparse_moe."


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return granite.configure(metadata, mixture=mixture_of(metadata, Routing(n_used=8, scoring="logits")))


body, head = granite.body, granite.head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    return granite.hyperparameters(s) | mixture_hyperparameters(s, n_ff=None)


HUGGING_FACE = HuggingFace(
    classes=("GraniteMoeForCausalLM",),
    model_type="granitemoe",
    hyperparameters=_hyperparameters,
    tensors=DECODER | {"blk.{}.ffn_gate_inp": _MOE + "router.layer"},
    experts={
        "blk.{}.ffn_gate_exps": Experts(None, _MOE + "input_linear", 0, 2, in_memory=_MOE + "experts.gate_up_proj"),
        "blk.{}.ffn_up_exps": Experts(None, _MOE + "input_linear", 1, 2, in_memory=_MOE + "experts.gate_up_proj"),
        "blk.{}.ffn_down_exps": Experts(None, _MOE + "output_linear", in_memory=_MOE + "experts.down_proj"),
    },
    paired=("attn_q", "attn_k"),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "intermediate_size": 11008, "max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2,
        **dict.fromkeys(granite.SCALES, 1.0),
    },
    null_stays=granite.HUGGING_FACE.null_stays,
)  # fmt: skip
