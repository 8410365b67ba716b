"""StarCoder 2 (BigCode, 2024): LayerNorm, a feed-forward without a gate, and biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    DECODER,
    DEFAULTS,
    NORM_BIASES,
    HuggingFace,
    Settings,
    activation_hyperparameters,
    decoder_hyperparameters,
    window_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", feed_forward="plain", activation="gelu")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    shape = decoder_hyperparameters(s, norm="layer")
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    shape |= activation_hyperparameters(s, STYLE)
    return shape | window_hyperparameters(window, [window is not None] * shape["block_count"])


HUGGING_FACE = HuggingFace(
    classes=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    hyperparameters=_hyperparameters,
    aliases={"norm_epsilon": "layer_norm_eps"},
    first=("norm_epsilon",),
    tensors=DECODER
    | {"blk.{}.ffn_up": "model.layers.{}.mlp.c_fc", "blk.{}.ffn_down": "model.layers.{}.mlp.c_proj"},
    biases=NORM_BIASES
    | dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"), "use_bias"),
    defaults=DEFAULTS
    | {
        "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "use_bias": True,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
