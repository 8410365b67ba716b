"""Layers with a short convolution in place of attention (LFM2): hyperparameters, forward pass, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.huggingface import Settings, decoder_hyperparameters
from edgellm.arch.parts import (
    embeddings,
    feed_forward,
    layer_output,
    normalize,
    project,
    rotation_of,
    self_attention,
)
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import Graph, Value, add, add_bias, glu, split_columns
from edgellm.graph.nodes.recurrent import causal_conv

STYLE = Style(head_norms="heads", output_norm="token_embd_norm")
MOST_TAPS = 64


class ShortConv(NamedTuple):
    """n_taps: tokens that a convolution sees, itself included. layers: for each layer, whether it is one."""

    n_taps: int
    layers: tuple[bool, ...]


def short_conv_config(metadata: Mapping[str, Any], **more: Any) -> ModelConfig:
    """Of a decoder whose layers without heads of keys are convolutions (`attention.head_count_kv` is 0 there)."""
    keys = Keys(metadata)
    n_kv_heads = keys.counts("attention.head_count_kv", keys.count("block_count"), least=0)
    if not max(n_kv_heads):
        raise FormatError(
            f"{keys.architecture}.attention.head_count_kv is 0 in all layers; expected some with attention"
        )
    one = {f"{keys.architecture}.attention.head_count_kv": max(n_kv_heads)}
    conv = ShortConv(keys.count("shortconv.l_cache", least=2, most=MOST_TAPS), tuple(n == 0 for n in n_kv_heads))
    layers = tuple({"n_kv_heads": n or max(n_kv_heads)} for n in n_kv_heads)
    c = decoder_config({**metadata, **one}, STYLE, recurrent=conv, layers=layers, **more)
    if wrong := [n for n in n_kv_heads if n and c.n_heads % n]:
        raise FormatError(f"{c.n_heads} attention heads cannot share {wrong[0]} key-value heads evenly")
    return c


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    rotation = rotation_of(w, c, interleaved=False)
    assert isinstance(c.recurrent, ShortConv)
    x = embeddings(g, w, c)
    for layer, is_conv in enumerate(c.recurrent.layers):
        block, of = w.block(layer), c.of_layer(layer)
        h = normalize(block, c, x, "attn_norm")
        found = short_conv(block, c.recurrent, h) if is_conv else self_attention(block, of, h, rotation)
        x = add(x, found, name=block.named("ffn_inp"))
        h = feed_forward(block, c, normalize(block, c, x, "ffn_norm"))
        x = add(x, h, name=layer_output(block, c, layer))
    return g.output(x)


def short_conv(w: Weights, conv: ShortConv, x: Value) -> Value:
    """after * conv(before * inner): two gates, made of the token as what is convolved is."""
    width = x.width
    before, after, inner = split_columns(project(w, x, "shortconv.in_proj", 3 * width), width, width, width)
    weight, bias = w.take("shortconv.conv", width, conv.n_taps), w.bias("shortconv.conv", width)
    h = causal_conv(glu(before, inner, "linear"), weight)
    h = x.graph.name(h if bias is None else add_bias(h, bias), w.named("shortconv.conv"))
    return project(w, glu(after, h, "linear"), "shortconv.out_proj", width, "attn_out")


# --- checkpoints --------------------------------------------------------------------------------------------

_LAYER = "model.layers.{}."
TENSORS = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",
    "output": "lm_head",
    "blk.{}.attn_norm": _LAYER + "operator_norm",
    "blk.{}.attn_q": _LAYER + "self_attn.q_proj",
    "blk.{}.attn_k": _LAYER + "self_attn.k_proj",
    "blk.{}.attn_v": _LAYER + "self_attn.v_proj",
    "blk.{}.attn_output": _LAYER + "self_attn.out_proj",
    "blk.{}.attn_q_norm": _LAYER + "self_attn.q_layernorm",
    "blk.{}.attn_k_norm": _LAYER + "self_attn.k_layernorm",
    "blk.{}.shortconv.in_proj": _LAYER + "conv.in_proj",
    "blk.{}.shortconv.conv": _LAYER + "conv.conv",
    "blk.{}.shortconv.out_proj": _LAYER + "conv.out_proj",
    "blk.{}.ffn_norm": _LAYER + "ffn_norm",
    "blk.{}.ffn_gate": _LAYER + "feed_forward.w1",
    "blk.{}.ffn_up": _LAYER + "feed_forward.w3",
    "blk.{}.ffn_down": _LAYER + "feed_forward.w2",
}
BIASES = dict.fromkeys(("shortconv.in_proj", "shortconv.conv", "shortconv.out_proj"), "conv_bias")
ALIASES = {"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings"}
FIRST = ("norm_eps", "tie_embedding", "block_ff_dim")
KINDS = {"conv": True, "full_attention": False}


def short_conv_hyperparameters(s: Settings) -> dict[str, Any]:
    shape = decoder_hyperparameters(s)
    n_layers, n_kv_heads = shape["block_count"], shape["attention.head_count_kv"]
    kinds = s.get("layer_types")
    if kinds is None:
        attends = s.get("full_attn_idxs", list(range(n_layers)))
        if not isinstance(attends, list) or not all(type(i) is int and 0 <= i < n_layers for i in attends):
            raise FormatError(
                f"config.json: full_attn_idxs is {attends!r:.60}; expected numbers of its {n_layers} layers"
            )
        kinds = ["full_attention" if layer in attends else "conv" for layer in range(n_layers)]
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in list(KINDS) for kind in kinds):
        raise FormatError(f"config.json: layer_types is {kinds!r:.60}; expected {' or '.join(KINDS)} for each layer")
    return shape | {
        "attention.head_count_kv": [0 if KINDS[kind] else n_kv_heads for kind in kinds],
        "shortconv.l_cache": s.count("conv_L_cache", most=MOST_TAPS, least=2),
    }
