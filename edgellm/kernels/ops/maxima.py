"""The largest of every MAXIMA_GROUP numbers of a row: with them, sampling looks at few of the logits themselves.

Where one of a group is NaN or infinite, so is no number its largest: it is NaN, whatever the others are.
"""

from __future__ import annotations

from math import inf
from operator import add

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import MAXIMA, MAXIMA_GROUP
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

LANES = 16


def _group_maxima(v: Vocabulary, x: Value, n: Value, out: Value) -> None:
    """Of n numbers at x; the last group may be smaller."""
    n_whole = n / MAXIMA_GROUP

    def take(x: Value, best: Value, spoilt: Value) -> list[Value]:
        # The comparison is false for NaN, which then is not taken; but 0 times what is no number is NaN.
        return [v.maximum(x, best), v.fma(x, v.like(0.0, x), spoilt)]

    def whole(g: Value) -> None:
        best, spoilt = v.constant(-inf, F32, LANES), v.constant(0.0, F32, LANES)
        for at in range(0, MAXIMA_GROUP, LANES):
            best, spoilt = take(v.f32(x + g * (4 * MAXIMA_GROUP) + 4 * at, LANES), best, spoilt)
        v.store(out + g * 4, v.folded(best, v.maximum) + v.folded(spoilt, add))

    def rest(_: Value) -> None:
        first = n_whole * MAXIMA_GROUP
        best, spoilt = v.loop(
            n - first,
            [v.constant(-inf, F32), v.constant(0.0, F32)],
            lambda i, best, spoilt: take(v.f32(x + (first + i) * 4), best, spoilt),
        )
        v.store(out + n_whole * 4, best + spoilt)

    v.repeat(n_whole, whole)
    v.repeat(v.minimum(n - n_whole * MAXIMA_GROUP, v.like(1, n)), rest)


def build_maxima(isa):
    """Chunk c is the groups from c % chunks_per_token * chunk_groups on, of token c // chunks_per_token."""
    op_at = record_viewer(MAXIMA)
    group = MAXIMA_GROUP
    group_maxima = staged(isa, "void", "i64", "i64", "i64")(_group_maxima)

    def maxima(record, chunk, thread):
        op = op_at(record)
        token = chunk // op.chunks_per_token
        first = chunk % op.chunks_per_token * op.chunk_groups
        n = min(op.chunk_groups * group, op.n_cols - first * group)
        at = op.x + (token * op.stride + first * group) * 4
        group_maxima(at, n, op.out + (token * op.out_stride + first) * 4)

    return maxima
