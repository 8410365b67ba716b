"""Fused ops: neighbouring row ops become one op, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgellm.graph import Graph, Lowered, Team, Value
from edgellm.graph.cost import weight_bytes, weight_macs
from edgellm.graph.nodes import add, linear, rms_norm, select_rows
from edgellm.graph.nodes.low_rank import narrow, widen
from edgellm.kernels import reference, reference_rows
from edgellm.kernels.low_rank_records import MOST_RANK
from edgellm.kernels.schema import LINE
from edgellm.kernels.store import KernelStore
from edgellm.quants.tiles import to_tiles

from .conftest import lowered, program_of, rows_for, tensor

pytestmark = pytest.mark.usefixtures("no_amx")

NARROW, WIDE, EPSILON = 64, 8192, 1e-5
NORM = tensor("norm", NARROW)


def names(ops: Lowered) -> list[str]:
    return [op.name_of(op.kernel) for op in ops.steps]


def test_only_neighbours_that_work_by_rows_are_fused() -> None:
    g = Graph()
    x = g.input(NARROW)
    h = linear(rms_norm(add(x, x), NORM, EPSILON), tensor("w", NARROW, NARROW, format_name="Q8_0"))
    g.output(add(select_rows(h), x))
    assert names(lowered(g)) == ["add + rms_norm + quantize", "linear_prefill.Q8_0", "select_rows", "add"]


def test_what_is_added_up_of_a_value_parts_its_neighbours() -> None:
    g = Graph()
    h = rms_norm(g.input(NARROW), NORM, EPSILON)
    g.output(linear(h, tensor("w", NARROW, NARROW, format_name="Q8_0")))
    ops = lowered(g, square_sums={h: np.zeros(NARROW)})
    assert names(ops) == ["rms_norm", "sum_squares", "quantize", "linear_prefill.Q8_0"]


def test_a_chunk_is_as_many_rows_as_the_widest_op_wants() -> None:
    g = Graph()
    narrow, wide = g.input(NARROW), g.input(WIDE)
    g.output(add(narrow, narrow))
    g.output(add(wide, wide))
    ops = lowered(g)
    (step,) = ops.steps
    assert step.chunks.per_chunk == 1 < ops.ops[0].chunks.per_chunk
    assert [part.fields["chunk_tokens"] for part in step.parts] == [1, 1]
    assert ops.ops[0].fields["chunk_tokens"] == ops.ops[0].chunks.per_chunk  # the ops themselves are as they were


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_fused_op_gives_what_its_parts_give(
    store: KernelStore, team_of: Callable[[int], Team], n_threads: int
) -> None:
    """Every part writes where later parts, later ops and the caller read, whatever the number of tokens."""
    g = Graph()
    x = g.input(NARROW)
    total = g.output(add(x, x), "total")
    h = g.output(rms_norm(total, NORM, EPSILON), "norm")
    w = tensor("w", 96, NARROW, format_name="Q8_0")
    y = g.output(linear(h, w), "product")
    rows = rows_for(x, 512)
    program = program_of(lowered(g, n_threads), store, team_of(n_threads), 512, {x: rows})
    rng = np.random.default_rng(8)
    for n_tokens in (1, 2, 129, 512):
        rows[:] = rng.standard_normal(rows.shape)

        def view(value: Value, n: int = n_tokens) -> np.ndarray:
            return program.view(value, n)

        program.run({"tokens": n_tokens})
        np.testing.assert_array_equal(view(total), 2 * rows[:n_tokens])
        want = reference.rms_norm(view(total), NORM.dequantize(), EPSILON)
        np.testing.assert_allclose(view(h), want, rtol=1e-5)
        np.testing.assert_allclose(view(y), reference.linear(w.raw, w.format, reference.quantize(view(h))), atol=1e-4)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_low_rank_steps_join_their_products(store: KernelStore, team_of: Callable[[int], Team], n_threads: int) -> None:
    """What is added to a product is a part of its chunks, and steps that read the same rows are one op."""
    # As in training, where a matrix is float32.
    g = Graph()
    x = g.input(NARROW)
    h = g.output(rms_norm(x, NORM, EPSILON))
    made, want = [], []
    for name, width in (("q", 144), ("k", 80)):
        w = tensor(name, width, NARROW, format_name="Q8_0")
        a, b = (tensor(f"{name}.{part}", 9, n, format_name="F32") for part, n in (("a", NARROW), ("b", width)))
        low = narrow(h, a)
        made.append(g.output(widen(linear(h, w), low, b, 0.5)))
        want.append((w, a, b))
    ops = lowered(g, n_threads)
    assert names(ops) == [
        "rms_norm + quantize", "narrow.F32 + narrow.F32",
        "linear_prefill.Q8_0 + widen.F32", "linear_prefill.Q8_0 + widen.F32",
    ]  # fmt: skip
    assert [op.name_of(op.kernel_when_small) for op in ops.steps][1:3] == [
        "narrow.F32.small + narrow.F32.small", "linear_decode.Q8_0 + widen.F32.small",
    ]  # fmt: skip
    of_narrow, *of_linears = sum(a.n_bytes for _, a, _ in want), *(w.n_bytes + b.n_bytes for w, _, b in want)
    assert [weight_bytes(op) for op in ops.steps] == [0, of_narrow, *of_linears]  # a fused op reads what its parts read
    products = [(NARROW + 9) * w.shape[0] for w, _, _ in want]
    assert [weight_macs(op) for op in ops.steps] == [0, 2 * 9 * NARROW, *products]
    rows = rows_for(x, 64)
    program = program_of(ops, store, team_of(n_threads), 64, {x: rows})
    rows[:] = np.random.default_rng(9).standard_normal(rows.shape)
    alone = []
    for n_tokens in (1, 2, 64):
        program.run({"tokens": n_tokens})
        normed = program.view(h, n_tokens)
        for value, (w, a, b) in zip(made, want, strict=True):
            base = reference.linear(w.raw, w.format, reference.quantize(normed))
            low_rows = reference_rows.narrow(normed, a.dequantize())
            expected = reference_rows.widen(base, low_rows, b.dequantize(), 0.5)
            np.testing.assert_allclose(program.view(value, n_tokens), expected, atol=1e-3)
        alone.append([program.view(value, 1).copy() for value in made])
    for later in alone[1:]:
        for first, other in zip(alone[0], later, strict=True):
            np.testing.assert_array_equal(first, other)  # the same bits in a small batch and in a large one


@pytest.mark.parametrize("more", [0, 1])
def test_a_rank_that_is_too_large_for_integers(more: int) -> None:
    g, rank = Graph(), MOST_RANK + more
    x = g.input(NARROW)
    a, b = (tensor(name, rank, NARROW, format_name="F16") for name in "ab")
    g.output(widen(linear(x, tensor("q", NARROW, NARROW, format_name="Q8_0")), narrow(x, a), b, 1.0))
    assert [
        name for step in names(lowered(g)) for name in step.split(" + ") if "narrow" in name or "widen" in name
    ] == (["narrow.F16", "widen.F16"] if more else ["narrow_int8", "widen_int8"])


def test_low_rank_steps_in_integers(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Who makes an input narrows it, and the product adds what was narrowed: the same bits in a batch of any size."""
    found = []
    for in_tiles in (False, True):
        for n_threads in (1, 3):
            g = Graph()
            x = g.input(NARROW)
            h = rms_norm(x, NORM, EPSILON)
            weights = [tensor(name, width, NARROW, format_name="Q8_0") for name, width in (("q", 144), ("k", 80))]
            pairs = [
                [tensor(f"{w.name}.{part}", 9, n, format_name="F16") for part, n in (("a", NARROW), ("b", w.shape[0]))]
                for w in weights
            ]
            made = []
            for w, (a, b) in zip(weights, pairs, strict=True):
                low = narrow(h, a)
                once = widen(linear(h, w), low, b, 20)
                made.append(g.output(widen(once, low, b, 10)))
            g.output(h)
            tiles = {w: to_tiles(w.format, w.raw) for w in weights} if in_tiles else {}
            ops = lowered(g, n_threads, tiles=tiles)
            assert names(ops)[0] == "rms_norm + quantize + narrow_int8 + narrow_int8"
            assert ops.steps[0].name_of(ops.steps[0].kernel_when_small) == "rms_norm + quantize_adapted"
            small = "linear_tiles_adapted.Q8_0" if in_tiles else "linear_decode.Q8_0 + widen_int8.small"
            assert [op.name_of(op.kernel_when_small) for op in ops.steps[1:]] == [f"{small} + widen_int8.small"] * 2
            packed = sum(
                part.fields["weight"].n_bytes for op in ops.steps for part in op.parts if "rank" in part.fields
            )
            assert sum(map(weight_bytes, ops.steps)) == packed + sum(w.n_bytes for w in weights)
            rows = rows_for(x, 64)
            program = program_of(ops, store, team_of(n_threads), 64, {x: rows})
            rows[:] = np.random.default_rng(9).standard_normal(rows.shape)
            of_a = sum(part.fields["weight"].n_bytes for part in ops.steps[0].parts if "rank" in part.fields)
            for n_tokens in (1, 2, 64):
                program.run({"tokens": n_tokens})
                asks = n_tokens <= ops.target.small_batch and ops.target.isa.stream_level == 2
                assert program.ops["first_lines"].tolist() == [of_a // LINE if asks else 0, 0, 0]
                normed = program.view(h, n_tokens)
                for value, w, (a, b) in zip(made, weights, pairs, strict=True):
                    base = reference.linear(w.raw, w.format, reference.quantize(normed))
                    low_rows = reference_rows.narrow(normed, a.dequantize())
                    expected = reference_rows.widen(base, low_rows, b.dequantize(), 30)
                    np.testing.assert_allclose(program.view(value, n_tokens), expected, atol=0.1)
                    assert np.abs(expected - base).max() > 2
                found.append([program.view(value, 1).copy() for value in made])
    for others in found[1:]:
        np.testing.assert_array_equal(np.concatenate(others, axis=1), np.concatenate(found[0], axis=1))


def test_a_lone_step_that_a_small_batch_does_elsewhere(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Nothing passes an op that has no split: what comes behind it stays a step, without chunks in a small batch."""
    g = Graph()
    x = g.input(NARROW)
    y = linear(x, tensor("w", NARROW, NARROW, format_name="Q8_0"))
    g.output(select_rows(y))
    low = narrow(x, tensor("a", 8, NARROW, format_name="F16"))
    y = g.output(widen(y, low, tensor("b", 8, NARROW, format_name="F16"), 20))
    ops = lowered(g)
    assert names(ops) == ["quantize", "linear_prefill.Q8_0", "select_rows", "narrow_int8", "widen_int8"]
    assert [op.chunks.of({"tokens": 1}, is_small=True) for op in ops.steps][3] == 0
    rows = rows_for(x, 64)
    program = program_of(ops, store, team_of(2), 64, {x: rows})
    rows[:] = np.random.default_rng(9).standard_normal(rows.shape)
    found = []
    for n_tokens in (1, 64):
        program.run({"tokens": n_tokens})
        found.append(program.view(y, 1).copy())
    np.testing.assert_array_equal(*found)
