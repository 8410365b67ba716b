"""Phi 3 and 4 (Microsoft, 2024): a Llama whose projections are fused: queries, keys and values; gate and up.

Some turn only a part of each head, and some reach further by long-rope (Ding et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    DECODER,
    DEFAULTS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    window_hyperparameters,
)
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(feed_forward="fused")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _rope(s: Settings) -> Settings:
    return rope_settings(s, partial=True)


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s, _rope(s))
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    return shape | window_hyperparameters(window, [window is not None] * shape["block_count"])


_FUSED = ("attn_q", "attn_k", "attn_v", "ffn_gate")
HUGGING_FACE = HuggingFace(
    classes=("Phi3ForCausalLM",),
    model_type="phi3",
    hyperparameters=_hyperparameters,
    tensors={ours: theirs for ours, theirs in DECODER.items() if not ours.endswith(_FUSED)}
    | {
        "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
        "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
    },
    defaults=DEFAULTS
    | {
        "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "original_max_position_embeddings": 4096,
    },
    rope=_rope,
)  # fmt: skip
