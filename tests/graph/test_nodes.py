"""Nodes: what an architecture states is kept as it was stated, whoever computes it later."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.graph import Graph
from edgellm.graph.nodes import (
    AddBias,
    AttentionSpec,
    Linear,
    Node,
    Rotation,
    add,
    add_bias,
    attention,
    embed,
    glu,
    keys_values,
    linear,
    maxima,
    rms_norm,
    rope,
    select_rows,
)

from .conftest import tensor

ROTATION = Rotation(np.ones(4), interleaved=True)


def last(g: Graph) -> Node:
    return g.nodes[-1]


def test_what_a_node_needs_and_what_it_was_told() -> None:
    g = Graph()
    weight, bias, square = tensor("w", 48, 32), tensor("b", 48), tensor("s", 48, 48)
    x = g.input(32)
    y = linear(x, weight, sensitive=True)
    assert (last(g).kind, last(g).inputs, last(g).weights, y.width) == ("Linear", (x,), (weight,), 48)
    assert last(g).attributes == {"sensitive": True}
    assert (y.node, g.made_by(last(g)), x.node) == (last(g), y, None)
    z = add_bias(y, bias)
    assert (last(g).inputs, last(g).weights, last(g).attributes, z.width) == ((y,), (bias,), {}, 48)
    h = rms_norm(z, tensor("n", 12), 1e-5, n_heads=4)
    assert (last(g).inputs, last(g).attributes, h.width) == ((z,), {"epsilon": 1e-5, "n_heads": 4}, 48)
    q = rope(h, 4, ROTATION)
    assert (last(g).inputs, last(g).attributes) == ((h,), {"n_heads": 4, "rotation": ROTATION, "inverse": False})
    assert glu(z, q, "gelu").width == 48
    assert (last(g).inputs, last(g).attributes) == ((z, q), {"activation": "gelu"})
    assert add(z, linear(q, square)).width == 48
    assert select_rows(z).width == 48
    assert [maxima(z, group).width for group in (16, 20, 64)] == [3, 3, 1]
    assert embed(g, weight, scale=2.0).width == 32
    assert (last(g).inputs, last(g).weights, last(g).attributes) == ((), (weight,), {"scale": 2.0})


def test_attention_knows_its_cache_and_its_sinks() -> None:
    g = Graph()
    q, k, v, sinks = g.input(96), g.input(32), g.input(48), tensor("sinks", 6)
    kv = keys_values(k, v, 2)
    assert (kv.node.inputs, kv.node.key_dim, kv.node.value_dim) == ((k, v), 16, 24)
    out = attention(q, kv, 6, AttentionSpec(0.25, sinks=sinks))
    assert (last(g).inputs, last(g).weights, out.width) == ((q, kv), (sinks,), 6 * 24)
    assert last(g).source is kv.node
    attention(q, kv, 6, AttentionSpec(0.25))
    assert last(g).weights == ()


@pytest.mark.parametrize(("n_heads", "width"), [(3, 48), (4, 96), (4, 48), (6, 64)])
def test_heads_that_do_not_fit_are_refused(n_heads: int, width: int) -> None:
    g = Graph()
    kv = keys_values(g.input(32), g.input(32), 2)
    with pytest.raises(UsageError, match=f"{n_heads} heads of queries, {width} wide, do not fit 2 heads of 16"):
        attention(g.input(width), kv, n_heads, AttentionSpec(0.25))


def test_attention_looks_at_a_cache_only() -> None:
    g = Graph()
    with pytest.raises(UsageError, match="attention looks at what keys_values made"):
        attention(g.input(32), g.input(32), 2, AttentionSpec(0.25))


def test_values_of_another_graph_are_refused() -> None:
    here, there = Graph(), Graph()
    x, y = here.input(32), there.input(32)
    for record in (lambda: add(x, y), lambda: glu(x, y, "silu"), lambda: keys_values(x, y, 2)):
        with pytest.raises(UsageError, match="takes a value of another graph"):
            record()
    assert here.nodes == there.nodes == []


def test_a_name_is_one_value_s_own() -> None:
    g = Graph()
    x = g.input(32, "x")
    y = add(x, x, name="y")
    assert g.values == {"x": x, "y": y}
    assert (x.name, y.name, add(x, y).name) == ("x", "y", "")
    for again in (lambda: add(x, y, name="x"), lambda: g.output(y, "z"), lambda: g.input(32, "y")):
        with pytest.raises(UsageError, match="two names for one value, or two values of one name"):
            again()
    g.output(y)
    assert g.outputs == [y]


def test_a_value_stays_what_it_was_made_as() -> None:
    """Whatever is done with it afterwards: nothing is changed, everything is another value."""
    g = Graph()
    x = g.input(32)
    weight, bias = tensor("w", 32, 32), tensor("b", 32)
    made = [linear(x, weight), add_bias(x, bias), rope(x, 4, ROTATION), linear(x, weight), add_bias(x, bias)]
    assert len({x, *made}) == 6
    assert all(node.inputs == (x,) for node in g.nodes)
    assert [type(node) for node in g.nodes[::3]] == [Linear, Linear]
    assert g.nodes[1] != g.nodes[4] and isinstance(g.nodes[1], AddBias)


def test_only_what_is_needed() -> None:
    g = Graph()
    x = g.input(32)
    chain = [x]
    for _ in range(5):
        chain.append(add(chain[-1], chain[-1]))
    aside = add(chain[2], x)
    nodes = [value.node for value in chain[1:]]
    assert g.needed([chain[5]]) == nodes
    assert g.needed([chain[3], chain[2]]) == nodes[:3]
    assert g.needed([chain[5]], given=[chain[3]]) == nodes[3:]
    assert g.needed([chain[5], aside], given=[chain[3]]) == [nodes[0], nodes[1], nodes[3], nodes[4], aside.node]
    assert g.needed([chain[3]], given=[chain[3]]) == []
    assert all(g.needed([b], given=[a]) == [b.node] for a, b in pairwise(chain))
