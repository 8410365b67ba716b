"""What the families share: attention with its projections, the gated feed-forward, rotary frequencies, the head."""

from __future__ import annotations

import numpy as np

from edgellm.arch.config import ModelConfig
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.formats.tensor import Tensor
from edgellm.graph import Graph, Value
from edgellm.graph.builder import Rope


def token_embedding(w: Weights, c: ModelConfig) -> Tensor:
    """The embedding matrix; its number of rows is the size of the vocabulary."""
    return w.take("token_embd", None, c.n_embd)


def rope_frequencies(c: ModelConfig, base: float, scale: float = 1.0, factors: np.ndarray | None = None) -> np.ndarray:
    """Radians per position for each pair: base**(-2i / n_rot), slowed down by `scale` and by each pair's factor."""
    frequencies = base ** (-np.arange(0, c.n_rot, 2) / c.n_rot) / scale
    return frequencies if factors is None else frequencies / factors


def rope_of(w: Weights, c: ModelConfig, interleaved: bool) -> Rope:
    """Rotary embedding, slowed down by the factors that Llama 3 and its like hold as a tensor."""
    factors = w.take("rope_freqs", c.n_rot // 2).dequantize() if w.has("rope_freqs") else None
    if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError("tensor 'rope_freqs.weight' holds something else than positive numbers")
    return Rope(rope_frequencies(c, c.rope_base, c.rope_scale, factors), interleaved)


def project(g: Graph, w: Weights, x: Value, name: str, n_out: int) -> Value:
    """W x for the weight `name` [n_out, width of x], plus its bias where the file has one."""
    out = g.linear(x, w.take(name, n_out, x.width))
    bias = w.bias(name, n_out)
    return out if bias is None else g.add_bias(out, bias)


def self_attention(
    g: Graph,
    w: Weights,
    c: ModelConfig,
    x: Value,
    rope: Rope,
    window: int | None = None,
    head_norms: bool = False,
) -> Value:
    """Grouped-query attention (Ainslie et al., 2023) with its four projections.

    head_norms:  normalize every head of queries and keys before they are turned, as Gemma 3 and Qwen 3 do.
    """
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q = project(g, w, x, "attn_q", q_width)
    k = project(g, w, x, "attn_k", kv_width)
    v = project(g, w, x, "attn_v", kv_width)
    if head_norms:
        q = g.rms_norm(q, w.take("attn_q_norm", c.head_dim), c.epsilon, c.n_heads)
        k = g.rms_norm(k, w.take("attn_k_norm", c.head_dim), c.epsilon, c.n_kv_heads)
    q = g.rope(q, c.n_heads, rope)
    k = g.rope(k, c.n_kv_heads, rope)
    a = g.attention(q, k, v, c.n_heads, c.n_kv_heads, c.attention_scale, window)
    return project(g, w, a, "attn_output", c.n_embd)


def pre_norm_decoder(g: Graph, w: Weights, c: ModelConfig, rope: Rope, head_norms: bool = False) -> Value:
    """The forward pass of Llama and of the many families that changed little of it, as hidden states.

    A layer adds to the stream of hidden states twice: what its attention found, and what its feed-forward made
    of that. Each reads the stream through a norm.
    """
    x = g.embed(token_embedding(w, c))
    for layer in range(c.n_layers):
        block = w.block(layer)
        h = g.rms_norm(x, block.take("attn_norm", c.n_embd), c.epsilon)
        x = g.add(x, self_attention(g, block, c, h, rope, c.windows[layer], head_norms))
        h = g.rms_norm(x, block.take("ffn_norm", c.n_embd), c.epsilon)
        x = g.add(x, gated_feed_forward(g, block, c, h, "silu"))
    return g.output(x, "hidden")


def gated_feed_forward(g: Graph, w: Weights, c: ModelConfig, x: Value, activation: str) -> Value:
    """down(activation(gate(x)) * up(x))"""
    gate = project(g, w, x, "ffn_gate", c.n_ff)
    up = project(g, w, x, "ffn_up", c.n_ff)
    return project(g, w, g.glu(gate, up, activation), "ffn_down", c.n_embd)


def logits_head(g: Graph, w: Weights, c: ModelConfig, hidden: Value) -> Value:
    """Logits of the selected tokens; without an output matrix, the embedding matrix serves again.

    What is rounded here goes straight into the logits: no other linear adds as much to their distance from float32.
    """
    x = g.rms_norm(g.select_rows(hidden), w.take("output_norm", c.n_embd), c.epsilon)
    embedding = token_embedding(w, c)
    output = w.take("output", embedding.shape[0], c.n_embd) if w.has("output") else embedding
    return g.output(g.linear(x, output, fine=True), "logits")
