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

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgellm.arch.config import ModelConfig
from edgellm.arch.rope import check_factors, frequencies
from edgellm.arch.weights import Weights
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    AttentionSpec,
    Graph,
    Rotation,
    Value,
    activate,
    add,
    add_bias,
    attention,
    embed,
    embed_position,
    glu,
    keys_values,
    layer_norm,
    linear,
    rms_norm,
    rope,
    scale,
    select_rows,
    soft_cap,
    split_columns,
)


def token_embedding(w: Weights, c: ModelConfig) -> Tensor:
    """The embedding matrix; its number of rows is the size of the vocabulary."""
    return w.take("token_embd", None, c.n_embd)


def rope_frequencies(c: ModelConfig, base: float, factors: np.ndarray | None = None) -> np.ndarray:
    """Radians per position for each pair of a base, with the model's scaling, divided by each pair's factor."""
    found = frequencies(base, c.n_rot, c.scaling, c.n_ctx)
    return found if factors is None else found / factors


def rotation_of(w: Weights, c: ModelConfig, interleaved: bool) -> Rotation:
    """Rotary embedding, slowed down by the factors that Llama 3 and its like hold as a tensor.

    Those of long-rope are two tensors, of which the model's context chooses one.
    """
    factors = {
        name: check_factors(name, w.take(name, c.n_rot // 2).dequantize())
        for name in ("rope_freqs", "rope_factors_long", "rope_factors_short")
        if w.has(name)
    }
    is_long = c.n_ctx > c.scaling.n_ctx_original
    chosen = factors.get("rope_freqs", factors.get("rope_factors_long" if is_long else "rope_factors_short"))
    magnitude = c.scaling.magnitude * c.scaling.yarn_magnitude
    rotation = Rotation(rope_frequencies(c, c.rope_base, chosen), interleaved, magnitude)
    if c.temperature is None:
        return rotation
    return replace(rotation, of_queries=replace(rotation, temperature=c.temperature))


def normalize(w: Weights, c: ModelConfig, x: Value, name: str, n_heads: int = 1) -> Value:
    """The norm `name` of the family's kind, of whole rows or of every head."""
    size = x.width // n_heads
    if c.style.norm == "rms":
        return rms_norm(x, w.take(name, size), c.epsilon, n_heads, name=w.named(name))
    each = len(w.shape(name)) == 2  # every head has weights of its own
    weight = w.take(name, *((n_heads, size) if each else (size,)))
    return layer_norm(x, weight, None if each else w.bias(name, size), c.epsilon, n_heads, name=w.named(name))


def project(w: Weights, x: Value, name: str, n_out: int, made: str | None = None) -> Value:
    """W x for the weight `name` [n_out, width of x], plus its bias where the file has one.

    made:  the name of the value; None takes the weight's.
    """
    weight, bias = w.take(name, n_out, x.width), w.bias(name, n_out)
    value_name = w.named(made or name)
    if bias is None:
        return linear(x, weight, name=value_name)
    return add_bias(linear(x, weight), bias, name=value_name)


def queries_keys_values(w: Weights, c: ModelConfig, x: Value) -> list[Value]:
    """Three projections, or one (`attn_qkv`) that is cut into three."""
    widths = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.value_dim)
    if w.has("attn_qkv"):
        return split_columns(project(w, x, "attn_qkv", sum(widths)), *widths)
    names = ("attn_q", "attn_k", "attn_v")
    return [project(w, x, name, width) for name, width in zip(names, widths, strict=True)]


def normalize_queries_and_keys(w: Weights, c: ModelConfig, q: Value, k: Value) -> tuple[Value, Value]:
    """Their norms, of heads or of rows as the style has it."""
    n_q, n_k = (1, 1) if c.style.head_norms == "rows" else (c.n_heads, c.n_kv_heads)
    return normalize(w, c, q, "attn_q_norm", n_q), normalize(w, c, k, "attn_k_norm", n_k)


def alibi_slopes(n_heads: int, max_bias: float) -> np.ndarray | None:
    """float32 [n_heads], what scores lose for each position (Press et al., 2021); None without a largest bias.

    A number of heads that is no power of two has the slopes of the one below it, and every other one of the next.
    """
    if not max_bias:
        return None
    power = 1 << n_heads.bit_length() - 1
    first = 2.0 ** (-max_bias / power * np.arange(1, power + 1))
    between = 2.0 ** (-max_bias / power * (np.arange(n_heads - power) + 0.5))
    return np.concatenate([first, between]).astype(np.float32)


def self_attention(w: Weights, c: ModelConfig, x: Value, rotation: Rotation | None, window: int | None = None) -> Value:
    """Grouped-query attention (Ainslie et al., 2023) with its projections; a rotation of None turns nothing."""
    q, k, v = queries_keys_values(w, c, x)
    if c.style.head_norms in ("heads", "rows"):
        q, k = normalize_queries_and_keys(w, c, q, k)
    if rotation is not None:
        q, k = rope(q, c.n_heads, rotation.of_queries or rotation), rope(k, c.n_kv_heads, rotation)
    if c.style.head_norms == "turned":
        q, k = normalize_queries_and_keys(w, c, q, k)
    slopes = alibi_slopes(c.n_heads, c.max_alibi_bias)
    causal = c.style.causal
    sinks = w.take("attn_sinks", c.n_heads) if c.style.sinks else None
    spec = AttentionSpec(
        c.attention_scale, causal=causal, window=window, soft_cap=c.attention_cap, sinks=sinks, alibi=slopes
    )
    heads = attention(q, keys_values(k, v, c.n_kv_heads, cached=causal), c.n_heads, spec, name=w.named("kqv_out"))
    if c.style.inner_norms:
        heads = normalize(w, c, heads, "attn_sub_norm")
    return project(w, heads, "attn_output", c.n_embd, "attn_out")


def feed_forward(w: Weights, c: ModelConfig, x: Value) -> Value:
    """The family's kind of it: with a gate or without, see `Style`; experts in a layer that has a router."""
    if c.mixture is not None and w.has("ffn_gate_inp"):
        from edgellm.arch.mixture import mixture  # which models with experts alone need

        return mixture(w, c, x)
    return dense_feed_forward(w, c, x)


def dense_feed_forward(w: Weights, c: ModelConfig, x: Value) -> Value:
    """The same where no layer has experts, or has both."""
    activation = c.style.activation
    if c.style.feed_forward == "plain":
        assert activation != "clamped_swiglu"  # which is one with a gate
        up = project(w, x, "ffn_up", c.n_ff)
        inner = up.graph.name(activate(up, activation), w.named("ffn_act"))
    elif c.style.feed_forward == "fused":
        gate, up = split_columns(project(w, x, "ffn_up", 2 * c.n_ff), c.n_ff, c.n_ff)
        inner = glu(gate, up, activation, name=w.named("ffn_act"))
    else:
        gate, up = (project(w, x, name, c.n_ff) for name in ("ffn_gate", "ffn_up"))
        inner = glu(gate, up, activation, name=w.named("ffn_act"))
    if c.style.inner_norms:
        inner = normalize(w, c, inner, "ffn_sub_norm")
    return project(w, inner, "ffn_down", c.n_embd, "ffn_out")


def embeddings(g: Graph, w: Weights, c: ModelConfig) -> Value:
    """Of tokens, with those of positions where they are learnt, normalized where the family does that."""
    x = embed(g, token_embedding(w, c), c.embedding_scale)
    if c.style.learnt_positions:
        x = add(x, embed_position(g, w.take("position_embd", c.n_ctx_train, c.n_embd)))
    g.name(x, "embd")
    return normalize(w, c, x, "token_embd_norm") if c.style.embedding_norm else x


def layer_output(block: Weights, c: ModelConfig, layer: int) -> str:
    """The name of a layer's output."""
    return "hidden" if layer == c.n_layers - 1 else block.named("l_out")


def logits_head(g: Graph, w: Weights, c: ModelConfig, hidden: Value) -> Value:
    """Logits of the selected tokens; without an output matrix, the embedding matrix serves again.

    What is rounded here goes straight into the logits: no other linear adds as much to their distance from float32.
    """
    x = normalize(w, c, select_rows(hidden), c.style.output_norm)
    embedding = token_embedding(w, c)
    output = w.take("output", embedding.shape[0], c.n_embd) if w.has("output") else embedding
    bias = w.bias("output", embedding.shape[0])
    steps: list[Callable[[Value], Value]] = [lambda x: linear(x, output, sensitive=True)]
    if bias is not None:
        steps.append(lambda x: add_bias(x, bias))
    if c.logit_scale != 1:
        steps.append(lambda x: scale(x, c.logit_scale))
    if c.logit_cap is not None:
        steps.append(lambda x: soft_cap(x, c.logit_cap or 0.0))
    for step in steps:
        x = step(x)
    return g.output(x, "logits")
