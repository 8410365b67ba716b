"""What the families share: attention with its projections, the gated feed-forward, rotary frequencies, the head.

Values are named as llama.cpp names them, so that what is read about one model can be found in another:

    embd                the token embeddings, which the first layer reads
    blk.N.attn_norm     what a layer's projections read
    blk.N.attn_q, ...   queries, keys and values, before they are normalized or turned
    blk.N.kqv_out       what the heads found, before the output projection
    blk.N.attn_out      what attention adds
    blk.N.ffn_inp       the stream of hidden states between the halves of a layer
    blk.N.ffn_norm, ffn_gate, ffn_up, ffn_act
    blk.N.ffn_out       what the feed-forward adds
    blk.N.l_out         the stream after the layer; of the last layer it is `hidden`
    output_norm, logits
"""

from __future__ import annotations

import numpy as np

from edgellm.arch.config import ModelConfig
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    Activation,
    AttentionSpec,
    Graph,
    Rotation,
    Value,
    add,
    add_bias,
    attention,
    embed,
    glu,
    keys_values,
    linear,
    rms_norm,
    rope,
    select_rows,
)


def token_embedding(w: Weights, c: ModelConfig) -> Tensor:
    """The embedding matrix; its number of rows is the size of the vocabulary."""
    return w.take("token_embd", None, c.n_embd)


def rope_frequencies(c: ModelConfig, base: float, scale: float = 1.0, factors: np.ndarray | None = None) -> np.ndarray:
    """Radians per position for each pair: base**(-2i / n_rot), slowed down by `scale` and by each pair's factor."""
    frequencies = base ** (-np.arange(0, c.n_rot, 2) / c.n_rot) / scale
    return frequencies if factors is None else frequencies / factors


def rotation_of(w: Weights, c: ModelConfig, interleaved: bool) -> Rotation:
    """Rotary embedding, slowed down by the factors that Llama 3 and its like hold as a tensor."""
    factors = w.take("rope_freqs", c.n_rot // 2).dequantize() if w.has("rope_freqs") else None
    if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError("tensor 'rope_freqs.weight' holds something else than positive numbers")
    return Rotation(rope_frequencies(c, c.rope_base, c.rope_scale, factors), interleaved)


def normalize(w: Weights, c: ModelConfig, x: Value, name: str, n_heads: int = 1) -> Value:
    """The root mean square norm `name`, of whole rows or of every head."""
    return rms_norm(x, w.take(name, x.width // n_heads), c.epsilon, n_heads, name=w.named(name))


def project(w: Weights, x: Value, name: str, n_out: int, made: str | None = None) -> Value:
    """W x for the weight `name` [n_out, width of x], plus its bias where the file has one.

    made:  the name of the value; None takes the weight's.
    """
    weight, bias = w.take(name, n_out, x.width), w.bias(name, n_out)
    value_name = w.named(made or name)
    if bias is None:
        return linear(x, weight, name=value_name)
    return add_bias(linear(x, weight), bias, name=value_name)


def self_attention(
    w: Weights,
    c: ModelConfig,
    x: Value,
    rotation: Rotation,
    window: int | None = None,
    head_norms: bool = False,
    sees_all: bool = False,
) -> Value:
    """Grouped-query attention (Ainslie et al., 2023) with its four projections.

    head_norms:  normalize every head of queries and keys before they are turned, as Gemma 3 and Qwen 3 do.
    sees_all:    a token sees what comes after it too, as in encoders; then there is no cache.
    """
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q = project(w, x, "attn_q", q_width)
    k = project(w, x, "attn_k", kv_width)
    v = project(w, x, "attn_v", kv_width)
    if head_norms:
        q = normalize(w, c, q, "attn_q_norm", c.n_heads)
        k = normalize(w, c, k, "attn_k_norm", c.n_kv_heads)
    q = rope(q, c.n_heads, rotation)
    k = rope(k, c.n_kv_heads, rotation)
    spec = AttentionSpec(c.attention_scale, causal=not sees_all, window=window)
    heads = attention(q, keys_values(k, v, c.n_kv_heads, cached=not sees_all), c.n_heads, spec, name=w.named("kqv_out"))
    return project(w, heads, "attn_output", c.n_embd, "attn_out")


def gated_feed_forward(w: Weights, c: ModelConfig, x: Value, activation: Activation) -> Value:
    """down(activation(gate(x)) * up(x))"""
    gate = project(w, x, "ffn_gate", c.n_ff)
    up = project(w, x, "ffn_up", c.n_ff)
    return project(w, glu(gate, up, activation, name=w.named("ffn_act")), "ffn_down", c.n_embd, "ffn_out")


def pre_norm_decoder(g: Graph, w: Weights, c: ModelConfig, rotation: Rotation, head_norms: bool = False) -> Value:
    """The forward pass of Llama and of the many families that changed little of it, as hidden states.

    A layer adds to the stream of hidden states twice: what its attention found, and what its feed-forward made
    of that. Each reads the stream through a norm.
    """
    x = embed(g, token_embedding(w, c), name="embd")
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = normalize(block, c, x, "attn_norm")
        x = add(x, self_attention(block, c, h, rotation, c.windows[layer], head_norms), name=block.named("ffn_inp"))
        h = normalize(block, c, x, "ffn_norm")
        x = add(x, gated_feed_forward(block, c, h, "silu"), name=layer_output(block, c, layer))
    return g.output(x)


def layer_output(block: Weights, c: ModelConfig, layer: int) -> str:
    """The name of a layer's output."""
    return "hidden" if layer == c.n_layers - 1 else block.named("l_out")


def logits_head(g: Graph, w: Weights, c: ModelConfig, hidden: Value) -> Value:
    """Logits of the selected tokens; without an output matrix, the embedding matrix serves again.

    What is rounded here goes straight into the logits: no other linear adds as much to their distance from float32.
    """
    x = normalize(w, c, select_rows(hidden), "output_norm")
    embedding = token_embedding(w, c)
    output = w.take("output", embedding.shape[0], c.n_embd) if w.has("output") else embedding
    return g.output(linear(x, output, sensitive=True, name="logits"))
