"""Qwen 3.5 and 3.6, dense (Alibaba, 2026), text only: of four layers, three have a gated delta net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import delta_net
from edgellm.arch import delta_net_checkpoint as checkpoint
from edgellm.arch.config import ModelConfig
from edgellm.arch.delta_net import delta_net_config
from edgellm.arch.huggingface import ATTENTION_BIASES, HuggingFace
from edgellm.arch.parts import logits_head


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return delta_net_config(metadata)


body = delta_net.body
head = logits_head

HUGGING_FACE = HuggingFace(
    classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    model_type="qwen3_5_text",
    hyperparameters=checkpoint.delta_net_hyperparameters,
    tensors=checkpoint.TENSORS,
    vectors=checkpoint.VECTORS,
    squeezed=("ssm_conv1d",),
    offsets=checkpoint.OFFSETS,
    changed=checkpoint.CHANGED,
    row_orders=checkpoint.row_order,
    column_orders=checkpoint.column_order,
    biases=ATTENTION_BIASES,
    defaults=checkpoint.DEFAULTS
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_key_value_heads": 4},
    null_stays=(),
    rope=checkpoint.partial_rope,
)
