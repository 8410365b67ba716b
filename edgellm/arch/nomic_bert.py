"""Nomic's BERT (Nussbaum et al., 2024): rotary positions, a feed-forward gated by SiLU, biases in norms alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.bert import BERT_DEFAULTS, EMBEDDINGS, MASKED_HEADS, TOKEN_TYPES
from edgellm.arch.encoder_checkpoint import EncoderCheckpoint, encoder_hyperparameters
from edgellm.arch.encoder_parts import (
    BERT,
    EncoderConfig,
    embedding_head,
    encoder_config,
    post_norm_encoder,
    rotation_by,
)
from edgellm.arch.huggingface import Settings
from edgellm.arch.huggingface_rope import rope_hyperparameters, rope_settings
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes import Graph, Value

ROPE_BASE = 1000.0


def configure(metadata: Mapping[str, Any]) -> EncoderConfig:
    return encoder_config(metadata, BERT._replace(activation="silu"))


def body(g: Graph, w: Weights, c: EncoderConfig) -> Value:
    return post_norm_encoder(g, w, c, rotation_by(c, c.rope_base))


head = embedding_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    """Of the form that transformers has since its version 5."""
    shape = encoder_hyperparameters(s)
    rope = rope_settings(Settings({"rope_theta": ROPE_BASE} | dict(s.values)), known=("default", "linear"))
    return shape | rope_hyperparameters(rope)


def _first_form(s: Settings) -> dict[str, Any]:
    """Of the form that came with its own code, with keys named as in GPT-2."""
    if s.get("moe_every_n_layers"):
        raise UnsupportedError("config.json: moe_every_n_layers; a mixture of experts, and edgellm runs dense encoders")
    s.expect("activation_function", "swiglu")
    s.expect("prenorm", False)
    s.expect("causal", False)
    s.expect("rotary_emb_fraction", 1.0, 1)
    s.expect("rotary_emb_interleaved", False)
    s.expect("rotary_emb_scale_base", None)
    for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"):
        s.expect(key, False)
    renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
               "intermediate_size": "n_inner", "layer_norm_eps": "layer_norm_epsilon"}  # fmt: skip
    values = {name: s.get(key) for name, key in renamed.items()}
    # Its positions go further than the texts it was trained on.
    values["max_position_embeddings"] = min(s.count("n_positions"), s.count("max_trained_positions"))
    shape = encoder_hyperparameters(Settings(values | {"hidden_act": "silu"}))
    return shape | {"rope.freq_base": s.number("rotary_emb_base")}


_BIASES = dict.fromkeys(("token_embd_norm", "attn_output_norm", "layer_output_norm"))

_FIRST_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "emb_ln",
    "blk.{}.attn_qkv": "encoder.layers.{}.attn.Wqkv",
    "blk.{}.attn_output": "encoder.layers.{}.attn.out_proj",
    "blk.{}.attn_output_norm": "encoder.layers.{}.norm1",
    "blk.{}.ffn_up": "encoder.layers.{}.mlp.fc11",
    "blk.{}.ffn_gate": "encoder.layers.{}.mlp.fc12",
    "blk.{}.ffn_down": "encoder.layers.{}.mlp.fc2",
    "blk.{}.layer_output_norm": "encoder.layers.{}.norm2",
}

HUGGING_FACE = EncoderCheckpoint(
    classes=("NomicBertModel", "NomicBertForMaskedLM"),
    model_type="nomic_bert",
    hyperparameters=_hyperparameters,
    tensors=EMBEDDINGS
    | {
        "blk.{}.attn_q": "layers.{}.self_attn.q_proj",
        "blk.{}.attn_k": "layers.{}.self_attn.k_proj",
        "blk.{}.attn_v": "layers.{}.self_attn.v_proj",
        "blk.{}.attn_output": "layers.{}.self_attn.o_proj",
        "blk.{}.attn_output_norm": "layers.{}.post_attention_layernorm",
        "blk.{}.ffn_gate": "layers.{}.mlp.gate_proj",
        "blk.{}.ffn_up": "layers.{}.mlp.up_proj",
        "blk.{}.ffn_down": "layers.{}.mlp.down_proj",
        "blk.{}.layer_output_norm": "layers.{}.post_mlp_layernorm",
    },
    other_tensors=_FIRST_NAMES,
    biases=_BIASES,
    defaults=BERT_DEFAULTS | {"max_position_embeddings": 2048, "hidden_act": "silu"},
    promises=TOKEN_TYPES,
    prefix="nomic_bert.",
    left_out=MASKED_HEADS + r"|pooler\.",
    has_config=lambda config: "n_embd" not in config,
)
FIRST_FORM = EncoderCheckpoint(
    classes=("NomicBertModel", "NomicBertForPreTraining"),
    model_type="nomic_bert",
    hyperparameters=_first_form,
    tensors=_FIRST_NAMES,
    biases=_BIASES,
    defaults={
        "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072, "layer_norm_epsilon": 1e-12, "n_positions": 8192,
        "max_trained_positions": 2048, "rotary_emb_base": ROPE_BASE, "activation_function": "swiglu",
    },
    promises=TOKEN_TYPES,
    prefix="bert.",
    left_out=MASKED_HEADS + r"|pooler\.",
    has_config=lambda config: "n_embd" in config,
)  # fmt: skip
