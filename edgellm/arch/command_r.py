"""Command R (Cohere, 2024): attention and feed-forward read the same LayerNorm, logits are scaled.

Some have a norm for every head of queries and keys, each with weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HEAD_NORMS_IF_SAID,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", order="shared")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE, logit_scale=Keys(metadata).number("logit_scale", zero=1.0))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    if w.block(0).has("attn_q_norm"):
        c = replace(c, style=c.style._replace(head_norms="heads"))
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s, norm="layer") | {"logit_scale": s.number("logit_scale")}


COHERE_DEFAULTS = DEFAULTS | {
    "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
    "num_key_value_heads": 64, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625,
    "rope_theta": 500000.0, "tie_word_embeddings": True,
}  # fmt: skip
WITHOUT_FFN_NORM = {ours: theirs for ours, theirs in DECODER.items() if ours != "blk.{}.ffn_norm"}
HUGGING_FACE = HuggingFace(
    classes=("CohereForCausalLM",),
    model_type="cohere",
    hyperparameters=hyperparameters,
    tensors=WITHOUT_FFN_NORM | HEAD_NORMS,
    biases=ATTENTION_BIASES,
    promises=HEAD_NORMS_IF_SAID,
    defaults=COHERE_DEFAULTS,
)
