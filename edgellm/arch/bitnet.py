"""BitNet b1.58 (Microsoft, 2024): norms also inside of attention and feed-forward, before their last linears.

Files that llama.cpp writes for the first of them have SiLU; those of 2025 are gated by a squared ReLU, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HuggingFace,
    Settings,
    activation_hyperparameters,
    decoder_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(inner_norms=True)


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    is_new = Keys(metadata).architecture != "bitnet"
    return decoder_config(metadata, STYLE._replace(activation="relu_squared") if is_new else STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    return decoder_hyperparameters(s) | activation_hyperparameters(s, STYLE)


HUGGING_FACE = HuggingFace(
    classes=("BitNetForCausalLM", "BitnetForCausalLM"),
    model_type="bitnet",
    hyperparameters=_hyperparameters,
    tensors=DECODER
    | {
        "blk.{}.attn_sub_norm": "model.layers.{}.self_attn.attn_sub_norm",
        "blk.{}.ffn_sub_norm": "model.layers.{}.mlp.ffn_sub_norm",
    },
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30, "num_attention_heads": 20,
        "num_key_value_heads": 5, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "hidden_act": "relu2",
    },
)  # fmt: skip
