"""Qwen 3 (Alibaba, 2025), dense: as Qwen 2, with a norm on every query and key head in place of the biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch import qwen2
from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import ATTENTION_BIASES, DECODER, HEAD_NORMS, HuggingFace
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, Style(head_norms="heads"))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head

HUGGING_FACE = HuggingFace(
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    model_type="qwen3",
    hyperparameters=qwen2.hyperparameters,
    settings=qwen2.settings,
    tensors=DECODER | HEAD_NORMS,
    biases=ATTENTION_BIASES,
    defaults=qwen2.QWEN_DEFAULTS | {"head_dim": 128},
    null_stays=qwen2.NULL_STAYS,
)
