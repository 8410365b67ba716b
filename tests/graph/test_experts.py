"""Lowering mixtures of experts, and heads taken apart: against the twins of nodes, for few tokens and for many."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.graph import AddressedArray, Graph, Piece, Value
from edgellm.graph.cost import weight_bytes
from edgellm.graph.nodes import glu, linear
from edgellm.graph.nodes.experts import ExpertLinear, Routing, add_expert_bias, expert_linear, gate, route, sum_experts
from edgellm.graph.nodes.heads import join_heads, slice_heads
from edgellm.quants.tiles import to_tiles

from .conftest import lowered, program_of, rows_for, tensor
from .twin import Text, evaluate

WIDTH, INNER, N_EXPERTS, N_USED = 64, 96, 6, 2
# With rounded inputs, two linears one after the other, of values near 1.
WAYS = [("F32", "f32", 1e-5), ("F16", "int8", 1e-5), ("Q8_0", "f32", 1e-5), ("Q8_0", "int8", 0.04)]


def mixture(format_name: str, with_biases: bool) -> tuple[Graph, Value]:
    g = Graph()
    x = g.input(WIDTH, "x")
    bias, scales = (tensor(name, N_EXPERTS, seed=4) if with_biases else None for name in ("probs", "scales"))
    logits = linear(x, tensor("router", N_EXPERTS, WIDTH, seed=5), name="logits")
    chosen, weights = route(logits, Routing(N_USED, "sigmoid", scale=1.5), bias, scales)
    g.name(chosen, "chosen")
    shapes = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    w = {name: tensor(name, N_EXPERTS, *shape, format_name=format_name, seed=6) for name, shape in shapes.items()}
    gates, ups = (expert_linear(x, w[name], chosen) for name in ("gate", "up"))
    if with_biases:
        gates = add_expert_bias(gates, tensor("gate bias", N_EXPERTS, INNER, seed=8), chosen)
    h = glu(gates, ups, "silu", name="inner")
    found = sum_experts(expert_linear(h, w["down"], chosen), weights)
    return g, g.output(gate(found, linear(x, tensor("shared", 1, WIDTH, seed=9))), "out")


def run(
    g: Graph, rows: np.ndarray, store, team, activations: str, wanted: list[Value], in_tiles: bool = False
) -> list[np.ndarray]:
    (x,) = g.inputs
    memory = rows_for(x, 48)
    memory[: len(rows), : x.width] = rows
    stacks = [node.weight for node in g.nodes if isinstance(node, ExpertLinear)] if in_tiles else []
    tiles = {weight: to_tiles(weight.format, weight.some_rows(slice(None))) for weight in stacks}
    ops = lowered(g, 2, taps=wanted, activations=activations, tiles=tiles)
    assert sum(op.kernel.name.startswith("experts_tiles_prefill") for op in ops.ops) == len(stacks)
    program = program_of(ops, store, team, 48, {x: memory})
    n = len(rows)
    program.run(program.batch.fill([Piece([0] * n, 0, [0] * n, AddressedArray(np.zeros(1, np.int32)))]))
    return [program.view(value, n).copy() for value in wanted]


@pytest.mark.parametrize("n_tokens", [1, 2, 40])
@pytest.mark.parametrize("with_biases", [False, True])
@pytest.mark.parametrize(("format_name", "activations", "tolerance"), WAYS)
def test_a_mixture(store, team_of, n_tokens, with_biases, format_name, activations, tolerance) -> None:
    g, out = mixture(format_name, with_biases)
    rows = np.random.default_rng(n_tokens).standard_normal((n_tokens, WIDTH), np.float32)
    exact = evaluate(g, Text(np.zeros(0), np.zeros(0)), {g.inputs[0]: rows})
    wanted = [g.values["chosen"], g.values["inner"], out]
    chosen, inner, found = run(g, rows, store, team_of(2), activations, wanted)
    np.testing.assert_array_equal(chosen, exact[wanted[0]])
    np.testing.assert_allclose(inner, exact[wanted[1]], atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(found, exact[out], atol=tolerance, rtol=tolerance)


def test_every_token_alone_has_the_same_bits(store, team_of) -> None:
    g, out = mixture("Q8_0", True)
    rows = np.random.default_rng(3).standard_normal((40, WIDTH), np.float32)
    team = team_of(2)
    (together,) = run(g, rows, store, team, "int8", [out])
    for start, n in ((0, 1), (17, 1), (5, 3), (20, 16)):
        (some,) = run(g, rows[start : start + n], store, team, "int8", [out])
        np.testing.assert_array_equal(some, together[start : start + n])
        (from_tiles,) = run(g, rows[start : start + n], store, team, "int8", [out], in_tiles=True)
        np.testing.assert_array_equal(some, from_tiles)
    (from_tiles,) = run(g, rows, store, team, "int8", [out], in_tiles=True)
    np.testing.assert_array_equal(from_tiles, together)


def test_a_matrix_for_every_head(store, team_of) -> None:
    """Without a router, all are used: as latent attention does with what makes keys."""
    g = Graph()
    x = g.input(4 * 24)
    w = tensor("w", 4, 40, 16, seed=2)
    plain, turned = slice_heads(x, 4, 0, 16), slice_heads(x, 4, 16, 8)
    one = slice_heads(x, 1, 3, 5)
    out = g.output(join_heads(join_heads(expert_linear(plain, w), turned, 4), one, 4, 1), "out")
    rows = np.random.default_rng(3).standard_normal((20, 96), np.float32)
    heads = rows.reshape(20, 4, 24)
    want = np.concatenate(
        [
            np.einsum("thi,hoi->tho", heads[..., :16], w.dequantize()),
            heads[..., 16:],
            np.repeat(rows[:, None, 3:8], 4, 1),
        ],
        -1,
    )
    exact = evaluate(g, Text(np.zeros(0), np.zeros(0)), {x: rows})[out]
    np.testing.assert_allclose(exact, want.reshape(20, -1), atol=1e-5)
    team = team_of(2)
    for n in (1, 20):
        (found,) = run(g, rows[:n], store, team, "int8", [out])
        np.testing.assert_allclose(found, exact[:n], atol=1e-5)


def test_what_a_token_reads_is_what_its_experts_hold() -> None:
    g, _ = mixture("Q8_0", False)
    of_experts = [op for op in lowered(g).ops if op.kernel.op == "experts_prefill"]
    one = INNER * WIDTH // 32 * 34
    assert [weight_bytes(op) for op in of_experts] == [N_USED * one] * 3


@pytest.mark.parametrize(
    "how",
    [{"n_used": 0}, {"n_used": 7}, {"n_used": 2, "n_groups": 4}, {"n_used": 3, "n_groups": 3, "n_groups_used": 1}],
)
def test_routing_that_cannot_be(how: dict) -> None:
    with pytest.raises(UsageError, match="of 6 experts"):
        route(Graph().input(N_EXPERTS), Routing(**how))


def test_widths_that_do_not_fit() -> None:
    g = Graph()
    x = g.input(40)
    chosen, _ = route(g.input(N_EXPERTS), Routing(2))
    with pytest.raises(UsageError, match="2 experts of 64 inputs are given 40"):
        expert_linear(x, tensor("w", N_EXPERTS, 8, 64), chosen)
    with pytest.raises(UsageError, match="a gate of 6 numbers"):
        gate(x, g.input(6))
    with pytest.raises(UsageError, match="dimensions 8 to 20"):
        slice_heads(x, 4, 8, 12)
    with pytest.raises(UsageError, match="2 heads"):
        join_heads(x, x, 4, 2)
