"""BLOOM (BigScience, 2022): linear biases in place of positions (ALiBi), LayerNorm, projections fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import NORM_BIASES, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.parts import logits_head
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(norm="layer", feed_forward="plain", activation="gelu", embedding_norm=True)
MAX_BIAS = 8.0
LINEARS = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    bias = Keys(metadata).number("attention.max_alibi_bias", MAX_BIAS)
    return decoder_config(metadata, STYLE, max_alibi_bias=bias)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, None)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("apply_residual_connection_post_layernorm", False)
    s.values["intermediate_size"] = 4 * s.count("hidden_size")
    s.values["num_key_value_heads"] = s.count("num_attention_heads")
    shape = decoder_hyperparameters(s, norm="layer", shares=True)
    return {name: value for name, value in shape.items() if not name.startswith("rope.")}


HUGGING_FACE = HuggingFace(
    classes=("BloomForCausalLM", "BloomModel"),
    model_type="bloom",
    hyperparameters=_hyperparameters,
    aliases={
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "seq_length": "max_position_embeddings", "layer_norm_epsilon": "layer_norm_eps",
    },
    first=("layer_norm_epsilon",),
    tensors={
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{}.attn_norm": "transformer.h.{}.input_layernorm",
        "blk.{}.attn_qkv": "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_output": "transformer.h.{}.self_attention.dense",
        "blk.{}.ffn_norm": "transformer.h.{}.post_attention_layernorm",
        "blk.{}.ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
    },
    interleaved=True,
    biases=NORM_BIASES | {"token_embd_norm": None} | dict.fromkeys(LINEARS),
    defaults={
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
)  # fmt: skip
