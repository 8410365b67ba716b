"""Falcon (TII, 2023): attention and feed-forward side by side, few heads of keys and values, LayerNorm.

The 40B and 180B have a norm for each of the two; smaller ones share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.huggingface import HuggingFace, Settings, activation_hyperparameters, decoder_hyperparameters
from edgellm.arch.parts import (
    embeddings,
    feed_forward,
    layer_output,
    logits_head,
    normalize,
    rotation_of,
    self_attention,
)
from edgellm.arch.promises import Promise
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value, add

STYLE = Style(norm="layer", order="shared", feed_forward="plain", activation="gelu_erf")


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata, STYLE)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    rotation = rotation_of(w, c, interleaved=False)
    x = embeddings(g, w, c)
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = normalize(block, c, x, "attn_norm")
        to_attention = normalize(block, c, x, "attn_norm_2") if block.has("attn_norm_2") else h
        found = self_attention(block, c, to_attention, rotation)
        x = add(x, found, name=block.named("ffn_inp"))
        x = add(x, feed_forward(block, c, h), name=layer_output(block, c, layer))
    return g.output(x)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("alibi", False)
    is_new = s.flag("new_decoder_architecture")
    s.expect("parallel_attn", True)
    s.expect("num_ln_in_parallel_attn", None, 1, *((2,) if is_new else ()))
    heads = s.count("num_attention_heads")
    s.values["num_key_value_heads"] = s.count("num_kv_heads", heads) if is_new or not s.flag("multi_query") else 1
    if s.get("intermediate_size") is None:
        s.values["intermediate_size"] = 4 * s.count("hidden_size")
    shape = decoder_hyperparameters(s, norm="layer", shares=True) | activation_hyperparameters(s, STYLE, "activation")
    return shape | {"tensor_data_layout": "jploski"}


_SECOND_NORM = Promise(
    lambda s, layer: s.flag("new_decoder_architecture") and s.get("num_ln_in_parallel_attn", 2) == 2,
    ("new_decoder_architecture", "num_ln_in_parallel_attn"),
)
HUGGING_FACE = HuggingFace(
    classes=("FalconForCausalLM", "RWForCausalLM"),
    model_type="falcon",
    hyperparameters=_hyperparameters,
    aliases={
        "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_head_kv": "num_kv_heads",
        "ffn_hidden_size": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps",
    },
    first=("ffn_hidden_size", "layer_norm_epsilon"),
    tensors={
        "token_embd": "transformer.word_embeddings",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{}.attn_norm": "transformer.h.{}.input_layernorm",
        "blk.{}.attn_norm_2": "transformer.h.{}.ln_attn",
        "blk.{}.attn_qkv": "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_output": "transformer.h.{}.self_attention.dense",
        "blk.{}.ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
    },
    also={"blk.{}.attn_norm": "transformer.h.{}.ln_mlp"},
    interleaved=True,
    biases={"attn_norm": None, "attn_norm_2": None, "output_norm": None}
    | dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "bias"),
    promises={"attn_norm_2": _SECOND_NORM},
    defaults={
        "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "multi_query": True, "parallel_attn": True, "tie_word_embeddings": True,
    },
    null_stays=("num_key_value_heads", "parallel_attn"),
)  # fmt: skip
