"""The profiler: the same results and no op forgotten. And the limits' kernels: the sums they must come to."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgellm.graph import Batch, Graph, Program, Target, Team, Tuning, lower
from edgellm.graph.nodes import add, select_rows
from edgellm.graph.ops import Chunks, Op
from edgellm.graph.profiler import Profiler
from edgellm.kernels import records
from edgellm.kernels.isa import Isa, available
from edgellm.kernels.records import S_PER_STEP, S_REGISTERS, U_REGISTERS
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore

from .conftest import lowered, program_of, rows_for


@pytest.fixture
def profiler(store: KernelStore):
    profiler = Profiler(store, 2, 8)
    yield profiler
    profiler.close()


class Doubling:
    """A program that adds x to itself three times, and skips an op in between."""

    WIDTH = 4096

    def __init__(self, store: KernelStore, team: Team) -> None:
        graph = Graph()
        source = graph.input(self.WIDTH)
        value = add(source, source)
        graph.output(select_rows(source))
        self.result = graph.output(add(add(value, value), source))
        ops = lowered(graph, team.n_threads)
        ops.ops[1].chunks = Chunks("nothing")
        self.rows = rows_for(source, 16)
        self.program = program_of(ops, store, team, inputs={source: self.rows})

    def run(self, n_tokens: int, rng: np.random.Generator) -> None:
        self.rows[:] = rng.random(self.rows.shape, np.float32)
        self.program.run({"tokens": n_tokens, "nothing": 0})
        np.testing.assert_array_equal(self.program.view(self.result, n_tokens), 5 * self.rows[:n_tokens])


def test_every_op_that_ran_is_timed(store: KernelStore, profiler: Profiler) -> None:
    doubling, rng = Doubling(store, profiler), np.random.default_rng(0)
    for n_tokens in (1, 16, 2):
        profiler.timed = []
        started = time.perf_counter()
        doubling.run(n_tokens, rng)
        elapsed = time.perf_counter() - started
        names = [timed.op.name_of(timed.kernel) for timed in profiler.timed]
        assert names == ["add", "add + add"]  # the last two are one
        assert {timed.n_tokens for timed in profiler.timed} == {n_tokens}
        assert all(timed.seconds > 0 for timed in profiler.timed)
        assert sum(timed.seconds for timed in profiler.timed) < elapsed


def test_the_kernel_that_ran_is_named(store: KernelStore, profiler: Profiler) -> None:
    doubling = Doubling(store, profiler)
    op = doubling.program.steps[0]
    op.small_kernel = find("glu")  # what the program would run for a small batch
    store.load([op.small_kernel])
    for kernel in (op.small_kernel, op.kernel):
        doubling.program.n_chunks[:] = [1, 0, 0]
        doubling.program.ops["kernel"][0] = store.address(kernel)
        profiler.timed = []
        profiler.run(doubling.program)
        assert [timed.kernel for timed in profiler.timed] == [kernel]


def test_many_profiled_runs(store: KernelStore, profiler: Profiler) -> None:
    doubling, rng = Doubling(store, profiler), np.random.default_rng(1)
    for _ in range(300):
        doubling.run(int(rng.integers(1, 17)), rng)
    assert len(profiler.timed) == 600


# --- the machine's limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page_lines", [0, 8, 64])
@pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
def test_what_is_read_is_all_of_the_memory(isa: Isa, page_lines: int) -> None:
    words = np.random.default_rng(2).integers(-(2**63), 2**63, (3, 1024))
    how = {"prefetch": 4096, "page_lines": page_lines}
    sums = run_alone(isa, "read_limit", 3, memory=words.ctypes.data, chunk_bytes=8192, **how)
    np.testing.assert_array_equal(sums, words.sum(axis=1))  # both wrap


@pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
def test_what_is_multiplied_is_all_of_it(isa: Isa) -> None:
    rng, n_bytes, n_steps = np.random.default_rng(3), isa.lanes * 4, 1000
    u = rng.integers(0, 128, (U_REGISTERS, n_bytes), np.uint8)
    s = rng.integers(-128, 128, (S_REGISTERS // S_PER_STEP, S_PER_STEP, n_bytes), np.int8)
    sums = run_alone(isa, "multiply_limit", 2, u=u.ctypes.data, s=s.ctypes.data, n_steps=n_steps)
    steps = s[np.arange(n_steps) % len(s)].astype(np.int64)
    want = np.einsum("ub,nsb->", u.astype(np.int64), steps)
    assert sums.tolist() == [np.int64(want).astype(np.int32)] * 2


def run_alone(isa: Isa, name: str, n_chunks: int, **fields: int) -> np.ndarray:
    """The sums that an op leaves, as a program of its own."""
    sums = np.zeros(n_chunks, np.int64)
    kernel, schema = find(name), {"read_limit": records.READ_LIMIT, "multiply_limit": records.MULTIPLY_LIMIT}[name]
    store, ops = KernelStore(isa), lower(Graph(), Target(isa, Tuning(1)))
    ops.ops.append(Op(kernel, schema, {"sums": sums.ctypes.data, **fields}, Chunks("chunks")))
    store.load([kernel, find("lead"), find("work")])
    team = Team(store, 1, 1)
    Program(ops, store, Batch(1, ops), team).run({"tokens": 0, "chunks": n_chunks})
    team.close()
    return sums
