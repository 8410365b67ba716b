"""What a bias adds to all keys is not stored in a cache of integers."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.graph.adapters import Instead, LowRank, Prefix, adapted
from edgellm.graph.lowering.constant_keys import N_POSITIONS, constant_keys
from edgellm.graph.nodes import (
    Attention,
    AttentionSpec,
    Graph,
    KeysValues,
    ReplaceRows,
    Rotation,
    add_bias,
    keys_values,
    linear,
    rope,
)
from edgellm.graph.nodes.attention import attention
from edgellm.graph.nodes.scaled import split_columns
from edgellm.kernels.kv_types import F16_KV, F32_KV, Q4_0_KV, Q8_0_KV
from edgellm.quants import FORMATS

from .conftest import tensor

N_HEADS, HEAD_DIM, N_ROT = 2, 16, 12
RNG = np.random.default_rng(3)


def bias(n: int, bad: float | None = None) -> Tensor:
    x = RNG.standard_normal(n).astype(np.float32)
    if bad is not None:
        x[3] = bad
    return Tensor("bias", (n,), FORMATS["F32"], x.view(np.uint8))


def found(rotation: Rotation | None, b: Tensor | None, kind=Q8_0_KV, **spec) -> tuple[Graph, np.ndarray | None]:
    g = Graph()
    width = N_HEADS * HEAD_DIM
    x = g.input(8)
    k = linear(x, tensor("k", width, 8))
    if b is not None:
        k = add_bias(k, b)
    if rotation is not None:
        k = rope(k, N_HEADS, rotation)
    kv = keys_values(k, linear(x, tensor("v", width, 8)), N_HEADS)
    g.output(attention(linear(x, tensor("q", width, 8)), kv, N_HEADS, AttentionSpec(0.25, **spec)))
    return g, constant_keys(*of_layer(g), kind)


def of_layer(g: Graph) -> tuple[KeysValues, list[Attention]]:
    (node,) = (node for node in g.nodes if isinstance(node, KeysValues))
    return node, [node for node in g.nodes if isinstance(node, Attention)]


@pytest.mark.parametrize("interleaved", [False, True])
def test_turned_biases_have_their_mean(interleaved: bool) -> None:
    rotation = Rotation(np.array([1.0, 0.3, 1e-2, 1e-3, 1e-4, 0]), interleaved, magnitude=1.2)
    b = bias(N_HEADS * HEAD_DIM)
    heads = b.dequantize().reshape(N_HEADS, HEAD_DIM).astype(np.float64)
    first, second = (slice(0, N_ROT, 2), slice(1, N_ROT, 2)) if interleaved else (slice(6), slice(6, 12))
    angles = np.arange(N_POSITIONS)[:, None] * rotation.frequencies
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.repeat(heads[None], N_POSITIONS, 0)
    turned[..., first] = 1.2 * (heads[:, first] * cos - heads[:, second] * sin)
    turned[..., second] = 1.2 * (heads[:, second] * cos + heads[:, first] * sin)
    np.testing.assert_allclose(found(rotation, b)[1].reshape(N_HEADS, -1), turned.mean(0), atol=1e-6)


def test_a_bias_that_nothing_turns_is_taken_off_whole() -> None:
    b = bias(N_HEADS * HEAD_DIM)
    np.testing.assert_array_equal(found(None, b, Q4_0_KV)[1], b.dequantize())


def test_one_projection_for_all_three() -> None:
    g, width, b = Graph(), N_HEADS * HEAD_DIM, bias(3 * N_HEADS * HEAD_DIM)
    x = g.input(8)
    q, k, v = split_columns(add_bias(linear(x, tensor("qkv", 3 * width, 8)), b), width, width, width)
    g.output(attention(q, keys_values(k, v, N_HEADS), N_HEADS, AttentionSpec(0.25)))
    np.testing.assert_array_equal(constant_keys(*of_layer(g), Q8_0_KV), b.dequantize()[width : 2 * width])


def test_adapters_change_nothing_of_it() -> None:
    """Rows with an adapter and rows without share a batch, and each finds keys that were computed in another."""
    b, width = bias(N_HEADS * HEAD_DIM), N_HEADS * HEAD_DIM
    g, own = found(Rotation(np.array([1e-3, 1e-4]), interleaved=False), b)
    tables = [tensor(name, 3, width) for name in ("keys", "values")]
    changes = {
        "bias": [Instead(bias(width), "scales")],
        "k": [LowRank(tensor("a", 4, 8), tensor("b", 4, width), 2.0, "scales", columns=bias(width))],
        "blk.0.keys_values": [Prefix(*tables, "places")],
    }
    changed, _ = adapted(g, changes)
    node, _ = of_layer(changed)
    assert {type(each).__name__ for each in changed.nodes} >= {"ReplaceRows", "Choose", "Widen"}
    assert isinstance(node.keys.node, ReplaceRows)
    np.testing.assert_array_equal(constant_keys(*of_layer(changed), Q8_0_KV), own)


def test_nothing_is_taken_off_where_there_is_nothing_or_it_would_show() -> None:
    """Scores that are capped, or stand beside those of sinks, are not what they were after a number is added to all."""
    b = bias(N_HEADS * HEAD_DIM)
    assert found(None, None)[1] is None
    assert found(None, b, F16_KV)[1] is None and found(None, b, F32_KV)[1] is None
    assert found(None, b, soft_cap=20.0)[1] is None
    assert found(None, b, sinks=bias(N_HEADS))[1] is None
    assert found(None, bias(N_HEADS * HEAD_DIM, np.inf))[1] is None
