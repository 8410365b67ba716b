"""Results of attention to a part of the positions, and how two of them become one.

A result is, for every row, the largest score (m), the sum of exponentials of scores less m (l), and value_dim sums
of values weighted with these exponentials.

A head with a sink begins as if it had seen that score already, of a value that is 0.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ATTENTION_MERGE, MERGE_TASK
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

LOWEST = -1e30  # below every score, yet finite: the difference of two of them is 0, not NaN
LANES = 16  # every head consists of so many dimensions, or a multiple


def merge_results(v: Vocabulary, part: Value, total: Value, n_rows: Value, value_dim: Value) -> None:
    """Add partial results to others, row by row: both weighted for the larger of their largest scores."""
    row_bytes = (value_dim + 2) * 4

    def merge_row(r: Value) -> None:
        a, b = total + row_bytes * r, part + row_bytes * r
        m_a, m_b = v.f32(a), v.f32(b)
        m = v.maximum(m_a, m_b)
        by_a, by_b = v.exp(m_a - m), v.exp(m_b - m)
        v.store(a, m)
        v.store(a + 4, v.fma(v.f32(b + 4), by_b, v.f32(a + 4) * by_a))

        def merge_sums(i: Value) -> None:
            at = i * (4 * LANES) + 8
            v.store(a + at, v.fma(v.f32(b + at, LANES), by_b, v.f32(a + at, LANES) * by_a))

        v.repeat(value_dim / LANES, merge_sums)

    v.repeat(n_rows, merge_row)


def clear_results(v: Vocabulary, rows: Value, n_rows: Value, value_dim: Value) -> None:
    """Results that have seen nothing: l and the sums are 0, and m is below every score."""

    def clear_row(r: Value) -> None:
        row = rows + (value_dim + 2) * 4 * r
        v.store(row, v.constant([LOWEST, 0.0], F32))
        v.repeat(value_dim / LANES, lambda i: v.store(row + i * (4 * LANES) + 8, v.constant(0.0, F32, LANES)))

    v.repeat(n_rows, clear_row)


def begin_with_score(v: Vocabulary, row: Value, score: Value) -> None:
    """A cleared result as if a score with a value of 0 had been seen."""
    v.store(row, v.vector_of([score, v.constant(1.0, F32)]))


def copy_scaled(v: Vocabulary, x: Value, out: Value, n: Value, factor: Value) -> None:
    """out = x * factor"""
    v.elements(n, LANES, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * factor))


def build_attention_merge(isa):
    """Put the partial results of a token together, in order; chunk c is the c-th token that was split."""
    op_at, task_at = record_viewer(ATTENTION_MERGE), record_viewer(MERGE_TASK)
    load = memory(isa).load_f32
    task_bytes = MERGE_TASK.dtype.itemsize
    copy = staged(isa, "void", "i64", "i64", "i64", "f32")(copy_scaled)
    merge = staged(isa, "void", *["i64"] * 4)(merge_results)
    clear = staged(isa, "void", *["i64"] * 3)(clear_results)
    begin_with = staged(isa, "void", "i64", "f32")(begin_with_score)

    def attention_merge(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk * task_bytes)
        row_bytes = (op.value_dim + 2) * 4
        total = op.scratch + thread * op.scratch_bytes
        clear(total, op.n_heads, op.value_dim)
        if op.sinks != 0:
            for head in range(op.n_heads):
                begin_with(total + head * row_bytes, load(op.sinks + head * 4))
        for i in range(task.n_slots):
            slot = task.first_slot + i * task.step
            merge(op.partial + slot * op.n_heads * row_bytes, total, op.n_heads, op.value_dim)
        for head in range(op.n_heads):
            sums = total + head * row_bytes + 8
            out = op.out + (task.token * op.out_stride + head * op.value_dim) * 4
            copy(sums, out, op.value_dim, np.float32(1) / load(sums - 4))

    return attention_merge
