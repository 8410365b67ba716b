"""Jina's BERT (Günther et al., 2023), the second version: linear biases (ALiBi) in place of positions, gated GELU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.bert import ATTENTION, BERT_DEFAULTS, BIASES, EMBEDDINGS, MASKED_HEADS, TOKEN_TYPES
from edgellm.arch.config import Keys
from edgellm.arch.encoder_checkpoint import EncoderCheckpoint, encoder_hyperparameters
from edgellm.arch.encoder_parts import EncoderConfig, embedding_head, encoder_config, post_norm_encoder
from edgellm.arch.huggingface import Settings
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

MAX_ALIBI_BIAS = 8.0


def configure(metadata: Mapping[str, Any]) -> EncoderConfig:
    return encoder_config(metadata, max_alibi_bias=Keys(metadata).number("attention.max_alibi_bias", MAX_ALIBI_BIAS))


def body(g: Graph, w: Weights, c: EncoderConfig) -> Value:
    return post_norm_encoder(g, w, c)


head = embedding_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("position_embedding_type", "alibi")
    s.expect("feed_forward_type", "geglu")
    return encoder_hyperparameters(s) | {"attention.max_alibi_bias": MAX_ALIBI_BIAS}


_GATED = {
    "blk.{}.ffn_up": "encoder.layer.{}.mlp.gated_layers",
    "blk.{}.ffn_down": "encoder.layer.{}.mlp.wo",
    "blk.{}.layer_output_norm": "encoder.layer.{}.mlp.layernorm",
}
_BIASES = {name: key for name, key in BIASES.items() if name != "ffn_up"}
_DEFAULTS = BERT_DEFAULTS | {"position_embedding_type": "alibi", "feed_forward_type": "geglu",
                             "max_position_embeddings": 8192}  # fmt: skip

HUGGING_FACE = EncoderCheckpoint(
    classes=("JinaBertModel", "JinaBertForMaskedLM"),
    model_type="bert",
    hyperparameters=_hyperparameters,
    tensors=EMBEDDINGS | ATTENTION | _GATED,
    biases=_BIASES,
    defaults=_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="bert.",
    left_out=MASKED_HEADS + r"|pooler\.",
)
CROSS_ENCODER = EncoderCheckpoint(
    classes=("JinaBertForSequenceClassification",),
    model_type="bert",
    hyperparameters=_hyperparameters,
    tensors=EMBEDDINGS | ATTENTION | _GATED | {"cls": "pooler.dense", "cls.output": "classifier"},
    biases=_BIASES | dict.fromkeys(("cls", "cls.output")),
    defaults=_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="bert.",
    ranks="cls",
)
