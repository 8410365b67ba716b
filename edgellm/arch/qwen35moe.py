"""Qwen 3.5 and 3.6 with experts (Alibaba, 2026), text only: as the dense one, with experts as in Qwen 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import delta_net, qwen2moe
from edgellm.arch import delta_net_checkpoint as checkpoint
from edgellm.arch.config import ModelConfig
from edgellm.arch.delta_net import delta_net_config
from edgellm.arch.huggingface import ATTENTION_BIASES, HuggingFace, Settings
from edgellm.arch.mixture import EXPERTS, mixture_hyperparameters, mixture_of
from edgellm.arch.parts import logits_head
from edgellm.graph.nodes.experts import Routing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    """Files have no width of a feed-forward, for there is none."""
    keys = dict(metadata)
    architecture = keys["general.architecture"]
    keys.setdefault(f"{architecture}.feed_forward_length", keys.get(f"{architecture}.expert_feed_forward_length"))
    return delta_net_config(keys, mixture=mixture_of(keys, Routing(n_used=8)))


body = delta_net.body
head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s = Settings({"intermediate_size": s.get("moe_intermediate_size"), **s.values})
    return checkpoint.delta_net_hyperparameters(s) | mixture_hyperparameters(s) | {
        "expert_shared_feed_forward_length": s.count("shared_expert_intermediate_size")
    }  # fmt: skip


HUGGING_FACE = HuggingFace(
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    model_type="qwen3_5_moe_text",
    hyperparameters=_hyperparameters,
    tensors={name: theirs for name, theirs in checkpoint.TENSORS.items() if "ffn_" not in name} | qwen2moe.MIXTURE,
    experts=EXPERTS,
    promises=qwen2moe.PROMISES,
    vectors=checkpoint.VECTORS,
    squeezed=("ssm_conv1d",),
    offsets=checkpoint.OFFSETS,
    changed=checkpoint.CHANGED,
    row_orders=checkpoint.row_order,
    column_orders=checkpoint.column_order,
    biases=ATTENTION_BIASES,
    defaults=checkpoint.DEFAULTS
    | {
        "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
    },
    null_stays=(),
    rope=checkpoint.partial_rope,
)  # fmt: skip
