"""Layers with a gated delta net in place of attention (Qwen 3.5), and attention with an output gate between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.mixture import n_foreseeing
from edgellm.arch.parts import (
    embeddings,
    feed_forward,
    layer_output,
    normalize,
    normalize_queries_and_keys,
    project,
    rotation_of,
)
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import (
    AttentionSpec,
    Graph,
    Rotation,
    Value,
    activate,
    add,
    attention,
    glu,
    keys_values,
    rope,
)
from edgellm.graph.nodes.heads import join_heads, slice_heads
from edgellm.graph.nodes.recurrent import causal_conv, delta_rule

STYLE = Style(head_norms="heads", feed_forward_norm="post_attention_norm")
INTERVAL = 4  # of so many layers, the last has attention
EPSILON = 1e-6  # of the length of queries and keys
MOST_TAPS, MOST_HEADS, MOST_DIM = 64, 4096, 1 << 14
VALUE_STEP = 16  # dimensions of values are a multiple of it: kernels have them in registers


class DeltaNet(NamedTuple):
    """Heads of a gated delta net. n_taps: tokens that the convolution before it sees.

    layers:  for each layer, whether it is one.
    is_grouped:  whether heads of values that share a head of keys are neighbours, as in checkpoints.
    """

    n_taps: int
    n_key_heads: int
    key_dim: int
    n_heads: int
    value_dim: int
    layers: tuple[bool, ...]
    is_grouped: bool = False

    @property
    def n_mixed(self) -> int:
        """Columns of queries, keys and values together."""
        return 2 * self.n_key_heads * self.key_dim + self.n_heads * self.value_dim

    def tiled(self, size: int) -> NDArray[np.int32]:
        """Which of HuggingFace's rows each of GGUF's is, for values of `size` in each head.

        There the heads of values that share a head of keys are neighbours, here head h goes with h % n_key_heads.
        """
        rows = np.arange(self.n_heads * size, dtype=np.int32)
        return np.ascontiguousarray(rows.reshape(self.n_key_heads, -1, size).swapaxes(0, 1)).reshape(-1)


def delta_net_config(metadata: Mapping[str, Any], is_grouped: bool = False, **more: Any) -> ModelConfig:
    keys = Keys(metadata)
    n_layers = keys.count("block_count") - n_foreseeing(metadata)
    interval = keys.count("full_attention_interval", INTERVAL)
    n_key_heads, n_heads = (keys.count(name, most=MOST_HEADS) for name in ("ssm.group_count", "ssm.time_step_rank"))
    inner = keys.count("ssm.inner_size", most=MOST_HEADS * MOST_DIM)
    if inner % n_heads or n_heads % n_key_heads:
        raise FormatError(
            f"{keys.architecture}.ssm.time_step_rank is {n_heads}; expected a multiple of ssm.group_count "
            f"({n_key_heads}) that divides ssm.inner_size ({inner})"
        )
    net = DeltaNet(
        keys.count("ssm.conv_kernel", least=2, most=MOST_TAPS),
        n_key_heads,
        keys.count("ssm.state_size", most=MOST_DIM),
        n_heads,
        inner // n_heads,
        keys.layers("attention.recurrent_layers", keys.count("block_count"), interval)[:n_layers],
        is_grouped,
    )
    return decoder_config(metadata, STYLE, n_layers=n_layers, recurrent=net, **more)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    rotation = rotation_of(w, c, interleaved=False)
    assert isinstance(c.recurrent, DeltaNet)
    w.pass_over_layers(range(c.n_layers, len(c.rotates)))
    x = embeddings(g, w, c)
    for layer, is_recurrent in enumerate(c.recurrent.layers):
        block = w.block(layer)
        h = normalize(block, c, x, "attn_norm")
        found = delta_net(block, c, c.recurrent, h) if is_recurrent else gated_attention(block, c, h, rotation)
        x = add(x, found, name=block.named("ffn_inp"))
        h = feed_forward(block, c, normalize(block, c, x, c.style.feed_forward_norm))
        x = add(x, h, name=layer_output(block, c, layer))
    return g.output(x)


def delta_net(w: Weights, c: ModelConfig, net: DeltaNet, x: Value) -> Value:
    """A convolution, the gated delta rule, and a norm of each head behind a gate (Yang et al., 2024)."""
    mixed, gate = _mixed_and_gate(w, net, x)
    mixed = activate(causal_conv(mixed, w.take("ssm_conv1d", net.n_mixed, net.n_taps)), "silu", w.named("ssm_conv1d"))
    decay, beta = _decay_and_beta(w, net, x)
    rate, bias = w.take_whole("ssm_a", net.n_heads), w.take_whole("ssm_dt.bias", net.n_heads)
    heads = delta_rule(
        mixed, decay, beta, rate, bias, net.n_key_heads, net.key_dim, EPSILON, w.named("ssm_heads"), net.is_grouped
    )
    heads = glu(gate, normalize(w, c, heads, "ssm_norm", net.n_heads), "silu")
    return project(w, heads, "ssm_out", c.n_embd, "attn_out")


def _mixed_and_gate(w: Weights, net: DeltaNet, x: Value) -> tuple[Value, Value]:
    """Queries, keys and values, and the gate; the first files of Qwen 3 Next have all in one, by heads of keys."""
    n_values = net.n_heads * net.value_dim
    if not w.has("ssm_in"):
        return project(w, x, "attn_qkv", net.n_mixed), project(w, x, "attn_gate", n_values)
    every, of_head = project(w, x, "ssm_in", net.n_mixed + n_values), n_values // net.n_key_heads
    q, k, v, gate = (
        slice_heads(every, net.n_key_heads, start, size)
        for start, size in ((0, net.key_dim), (net.key_dim, net.key_dim), (2 * net.key_dim, of_head),
                            (2 * net.key_dim + of_head, of_head))
    )  # fmt: skip
    return join_heads(join_heads(q, k, 1), v, 1), gate


def _decay_and_beta(w: Weights, net: DeltaNet, x: Value) -> tuple[Value, Value]:
    """Logits of each head; Qwen 3 Next has both in one, by heads of keys."""
    if not w.has("ssm_ba"):
        return project(w, x, "ssm_alpha", net.n_heads), project(w, x, "ssm_beta", net.n_heads)
    both, size = project(w, x, "ssm_ba", 2 * net.n_heads), net.n_heads // net.n_key_heads
    beta, decay = (slice_heads(both, net.n_key_heads, start, size) for start in (0, size))
    return decay, beta


def gated_attention(w: Weights, c: ModelConfig, x: Value, rotation: Rotation) -> Value:
    """Attention whose heads are multiplied by a logistic of a gate, which stands beside each head of queries."""
    both = project(w, x, "attn_q", 2 * c.n_heads * c.head_dim)
    q, gate = (slice_heads(both, c.n_heads, start, c.head_dim) for start in (0, c.head_dim))
    k = project(w, x, "attn_k", c.n_kv_heads * c.head_dim)
    v = project(w, x, "attn_v", c.n_kv_heads * c.value_dim)
    q, k = normalize_queries_and_keys(w, c, q, k)
    kv = keys_values(rope(k, c.n_kv_heads, rotation), v, c.n_kv_heads)
    heads = attention(rope(q, c.n_heads, rotation), kv, c.n_heads, AttentionSpec(c.attention_scale), w.named("kqv_out"))
    return project(w, glu(gate, heads, "sigmoid"), "attn_output", c.n_embd, "attn_out")
