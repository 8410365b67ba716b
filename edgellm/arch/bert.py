"""BERT (Devlin et al., 2018) and its like: RoBERTa, XLM-R, MiniLM, BGE, E5, and cross-encoders made of them.

Learnt positions, a norm after each half of a layer, GELU. A classifier, where there is one, sees the first token
through a linear layer and tanh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.encoder_checkpoint import EncoderCheckpoint, encoder_hyperparameters
from edgellm.arch.encoder_parts import BERT, EncoderConfig, embedding_head, encoder_config, post_norm_encoder
from edgellm.arch.huggingface import Settings
from edgellm.arch.promises import Promise
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> EncoderConfig:
    return encoder_config(metadata, BERT._replace(learnt_positions=True))


def body(g: Graph, w: Weights, c: EncoderConfig) -> Value:
    return post_norm_encoder(g, w, c)


head = embedding_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("position_embedding_type", "absolute")
    s.expect("is_decoder", False)
    return encoder_hyperparameters(s)


def _roberta(s: Settings) -> dict[str, Any]:
    """Its positions are counted from the id of the padding token on, and GGUF leaves out the rows before."""
    shape = _hyperparameters(s)
    shape["context_length"] -= s.count("pad_token_id", least=0) + 1
    return shape


BERT_DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
    "pad_token_id": 0,
}  # fmt: skip
EMBEDDINGS = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
ATTENTION = {
    "blk.{}.attn_q": "encoder.layer.{}.attention.self.query",
    "blk.{}.attn_k": "encoder.layer.{}.attention.self.key",
    "blk.{}.attn_v": "encoder.layer.{}.attention.self.value",
    "blk.{}.attn_output": "encoder.layer.{}.attention.output.dense",
    "blk.{}.attn_output_norm": "encoder.layer.{}.attention.output.LayerNorm",
}
# Some models of one text have none.
TOKEN_TYPES = {"token_types": Promise(lambda s, layer: s.get("type_vocab_size", 2) != 0, ("type_vocab_size",))}
TENSORS = EMBEDDINGS | ATTENTION | {
    "position_embd": "embeddings.position_embeddings",
    "blk.{}.ffn_up": "encoder.layer.{}.intermediate.dense",
    "blk.{}.ffn_down": "encoder.layer.{}.output.dense",
    "blk.{}.layer_output_norm": "encoder.layer.{}.output.LayerNorm",
}  # fmt: skip
BIASES = dict.fromkeys(("token_embd_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm", "ffn_up",
                        "ffn_down", "layer_output_norm"))  # fmt: skip
CLASSIFIER = {"cls": "pooler.dense", "cls.output": "classifier"}
ROBERTA_CLASSIFIER = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}
MASKED_HEADS = r"(cls\.(predictions|seq_relationship)|lm_head)\."

HUGGING_FACE = EncoderCheckpoint(
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    model_type="bert",
    hyperparameters=_hyperparameters,
    tensors=TENSORS,
    biases=BIASES,
    defaults=BERT_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="bert.",
    left_out=MASKED_HEADS + r"|pooler\.",
)
CROSS_ENCODER = EncoderCheckpoint(
    classes=("BertForSequenceClassification",),
    model_type="bert",
    hyperparameters=_hyperparameters,
    tensors=TENSORS | CLASSIFIER,
    biases=BIASES | dict.fromkeys(CLASSIFIER),
    defaults=BERT_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="bert.",
    ranks="cls",
)
ROBERTA_DEFAULTS = BERT_DEFAULTS | {"pad_token_id": 1}
ROBERTA = EncoderCheckpoint(
    classes=(
        "XLMRobertaModel",
        "RobertaModel",
        "CamembertModel",
        "XLMRobertaForMaskedLM",
        "RobertaForMaskedLM",
        "CamembertForMaskedLM",
    ),
    model_type="xlm-roberta",
    hyperparameters=_roberta,
    tensors=TENSORS,
    biases=BIASES,
    defaults=ROBERTA_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="roberta.",
    left_out=MASKED_HEADS + r"|pooler\.",
    first_rows={"position_embd": "pad_token_id"},
)
ROBERTA_CROSS_ENCODER = EncoderCheckpoint(
    classes=(
        "XLMRobertaForSequenceClassification",
        "RobertaForSequenceClassification",
        "CamembertForSequenceClassification",
    ),
    model_type="xlm-roberta",
    hyperparameters=_roberta,
    tensors=TENSORS | ROBERTA_CLASSIFIER,
    biases=BIASES | dict.fromkeys(ROBERTA_CLASSIFIER),
    defaults=ROBERTA_DEFAULTS,
    promises=TOKEN_TYPES,
    prefix="roberta.",
    ranks="cls",
    first_rows={"position_embd": "pad_token_id"},
)
