"""Chains: neighbouring row ops become one op, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Team, Tuning
from edgellm.graph.chains import chained
from edgellm.graph.ops import Value
from edgellm.graph.program import aligned, kernels_of
from edgellm.kernels import reference
from edgellm.kernels.isa import choose
from edgellm.kernels.store import KernelStore
from edgellm.quants import FORMATS

NARROW, WIDE, EPSILON = 64, 8192, 1e-5
NORM = Tensor("norm", (NARROW,), FORMATS["F32"], np.ones(NARROW, np.float32).view(np.uint8))


def names(g: Graph) -> list[str]:
    return [op.name_of(op.kernel) for op in chained(g.ops)]


def weight(n_out: int, n_in: int) -> Tensor:
    rng = np.random.default_rng(3)
    fmt = FORMATS["Q8_0"]
    return Tensor("w", (n_out, n_in), fmt, fmt.quantize(rng.standard_normal((n_out, n_in), np.float32)))


def test_only_neighbours_that_work_by_rows_are_chained() -> None:
    g = Graph(choose(), Tuning(1))
    x = g.input(NARROW)
    h = g.linear(g.rms_norm(g.add(x, x), NORM, EPSILON), weight(NARROW, NARROW))
    g.output(g.add(g.select_rows(h), x))
    assert names(g) == ["add + rms_norm + quantize", "linear_prefill.Q8_0", "select_rows", "add"]


def test_an_observed_input_breaks_a_chain() -> None:
    g = Graph(choose(), Tuning(1), observe=True)
    g.linear(g.rms_norm(g.input(NARROW), NORM, EPSILON), weight(NARROW, NARROW))
    assert names(g) == ["rms_norm", "sum_squares", "quantize", "linear_prefill.Q8_0"]


def test_a_chunk_is_as_many_rows_as_the_widest_op_wants() -> None:
    g = Graph(choose(), Tuning(1))
    narrow, wide = g.input(NARROW), g.input(WIDE)
    g.output(g.add(narrow, narrow))
    g.output(g.add(wide, wide))
    (chain,) = chained(g.ops)
    assert chain.chunks.per_chunk == 1 < g.ops[0].chunks.per_chunk
    assert [link.fields["chunk_tokens"] for link in chain.links] == [1, 1]
    assert g.ops[0].fields["chunk_tokens"] == g.ops[0].chunks.per_chunk  # the record of ops is as it was


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_chain_gives_what_its_ops_give(store: KernelStore, team_of: Callable[[int], Team], n_threads: int) -> None:
    """Every link writes where later links, later ops and the caller read, whatever the number of tokens."""
    g = Graph(choose(), Tuning(n_threads))
    x = g.input(NARROW)
    total = g.output(g.add(x, x), "total")
    h = g.output(g.rms_norm(total, NORM, EPSILON), "norm")
    w = weight(96, NARROW)
    y = g.output(g.linear(h, w), "product")
    store.load(kernels_of(g))
    rows = aligned(512 * x.token_bytes).view(np.float32).reshape(512, NARROW)
    program = Program(g, store, Batch(512, [], []), team_of(n_threads), inputs={x: rows.ctypes.data})
    rng = np.random.default_rng(8)
    for n_tokens in (1, 2, 129, 512):
        rows[:] = rng.standard_normal(rows.shape)

        def view(value: Value, n: int = n_tokens) -> np.ndarray:
            return program.view(value, n)

        program.run({"tokens": n_tokens})
        np.testing.assert_array_equal(view(total), 2 * rows[:n_tokens])
        want = reference.rms_norm(view(total), np.ones(NARROW, np.float32), EPSILON)
        np.testing.assert_allclose(view(h), want, rtol=1e-5)
        np.testing.assert_allclose(view(y), reference.linear(w.raw, w.format, reference.quantize(view(h))), atol=1e-4)
