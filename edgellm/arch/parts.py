"""What the families share: attention with its projections, the gated feed-forward, rotary frequencies, the head."""

from __future__ import annotations

import numpy as np

from edgellm.arch.config import ModelConfig
from edgellm.arch.weights import Weights
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
    q = g.linear(x, w.take("attn_q", q_width, c.n_embd))
    k = g.linear(x, w.take("attn_k", kv_width, c.n_embd))
    v = g.linear(x, w.take("attn_v", kv_width, c.n_embd))
    if head_norms:
        q = g.rms_norm(q, w.take("attn_q_norm", c.head_dim), c.epsilon, c.n_heads)
        k = g.rms_norm(k, w.take("attn_k_norm", c.head_dim), c.epsilon, c.n_kv_heads)
    q = g.rope(q, c.n_heads, rope)
    k = g.rope(k, c.n_kv_heads, rope)
    a = g.attention(q, k, v, c.n_heads, c.n_kv_heads, c.attention_scale, window)
    return g.linear(a, w.take("attn_output", c.n_embd, q_width))


def gated_feed_forward(g: Graph, w: Weights, c: ModelConfig, x: Value, activation: str) -> Value:
    """down(activation(gate(x)) * up(x))"""
    gate = g.linear(x, w.take("ffn_gate", c.n_ff, c.n_embd))
    up = g.linear(x, w.take("ffn_up", c.n_ff, c.n_embd))
    return g.linear(g.glu(gate, up, activation), w.take("ffn_down", c.n_embd, c.n_ff))


def logits_head(g: Graph, w: Weights, c: ModelConfig, hidden: Value) -> Value:
    """Logits of the selected tokens; without an output matrix, the embedding matrix serves again."""
    x = g.rms_norm(g.select_rows(hidden), w.take("output_norm", c.n_embd), c.epsilon)
    embedding = token_embedding(w, c)
    output = w.take("output", embedding.shape[0], c.n_embd) if w.has("output") else embedding
    return g.output(g.linear(x, output), "logits")
