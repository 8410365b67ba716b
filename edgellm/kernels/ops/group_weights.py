"""What sampling needs of each MAXIMA_GROUP neighbours in a row of logits: how likely they are, and the largest of them.

Both take whole groups only. Minus infinity is a logit too: of a token that must not come.
"""

from __future__ import annotations

from math import inf
from operator import add

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import GROUP_LARGEST, GROUP_WEIGHTS, MAXIMA_GROUP
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

LANES = 16


def _weights(v: Vocabulary, x: Value, n: Value, largest: Value, scale: Value, weights: Value, sums: Value) -> None:
    def group(g: Value) -> None:
        start, total = g * (4 * MAXIMA_GROUP), v.constant(0.0, F32, LANES)
        for at in range(0, 4 * MAXIMA_GROUP, 4 * LANES):
            weight = v.exp((v.f32(x + start + at, LANES) - largest) * scale)
            v.store(weights + start + at, weight)
            total = total + weight
        v.store(sums + g * 8, v.folded(total, add).to(F64))

    v.repeat(n, group)


def build_group_weights(isa):
    op_at = record_viewer(GROUP_WEIGHTS)
    weights_of = staged(isa, "void", "i64", "i64", "f32", "f32", "i64", "i64")(_weights)

    def group_weights(record, chunk, thread):
        op = op_at(record)
        weights_of(op.x, op.n_groups, np.float32(op.largest), np.float32(op.scale), op.weights, op.sums)

    return group_weights


def _largest(v: Vocabulary, x: Value, n: Value, out: Value) -> None:
    def group(g: Value) -> None:
        best = v.constant(-inf, F32, LANES)
        for at in range(0, 4 * MAXIMA_GROUP, 4 * LANES):
            best = v.maximum(v.f32(x + g * (4 * MAXIMA_GROUP) + at, LANES), best)
        v.store(out + g * 4, v.folded(best, v.maximum))

    v.repeat(n, group)


def build_group_largest(isa):
    op_at = record_viewer(GROUP_LARGEST)
    largest_of = staged(isa, "void", "i64", "i64", "i64")(_largest)

    def group_largest(record, chunk, thread):
        op = op_at(record)
        largest_of(op.x, op.n_groups, op.out)

    return group_largest
