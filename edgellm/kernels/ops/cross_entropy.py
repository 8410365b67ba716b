"""The negative log-likelihood of a target, log(sum(exp(x))) - x[target] for logits x, and its gradient by them.

Exponentials are of differences from the largest logit, so none overflows, and their sum is made in float64. Where one
of the logits is NaN or infinite, so is no result a number: all are NaN.
"""

from __future__ import annotations

from math import inf, nan

import numpy as np

from edgellm.kernels.gradient_records import CROSS_ENTROPY
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

LANES = 16


def _largest(v: Vocabulary, x: Value, n: Value) -> Value:
    """NaN where one of them is NaN or infinite."""
    n_whole = n / LANES * LANES

    def take(i: Value, lanes: int, best: Value, spoilt: Value) -> list[Value]:
        part = v.f32(x + i * 4, lanes)
        # The comparison is false for NaN, which then is not taken; but 0 times what is no number is NaN.
        return [v.maximum(part, best), v.fma(part, v.like(0.0, part), spoilt)]

    start = [v.constant(-inf, F32, LANES), v.constant(0.0, F32, LANES)]
    best, spoilt = v.loop(n / LANES, start, lambda i, *found: take(i * LANES, LANES, *found))
    best, spoilt = v.loop(n - n_whole, [best.max(), spoilt.sum()], lambda i, *found: take(n_whole + i, 1, *found))
    return best + spoilt


def _exponentials(v: Vocabulary, x: Value, n: Value, largest: Value, out: Value | None = None) -> Value:
    """The sum of exp(x - largest), in float64, each of them stored at `out`."""
    n_whole = n / LANES * LANES

    def add(i: Value, lanes: int, total: Value) -> list[Value]:
        power = v.exp(v.f32(x + i * 4, lanes) - largest)
        if out is not None:
            v.store(out + i * 4, power)
        return [total + power.to(F64)]

    (totals,) = v.loop(n / LANES, [v.constant(0.0, F64, LANES)], lambda i, total: add(i * LANES, LANES, total))
    (total,) = v.loop(n - n_whole, [totals.sum()], lambda i, total: add(n_whole + i, 1, total))
    return total


def build_cross_entropy(isa):
    """Chunk c is row c."""
    op_at = record_viewer(CROSS_ENTROPY)
    words = memory(isa)
    load_f32, store_f32, load_i64, clear = words.load_f32, words.store_f32, words.load_i64, words.clear_f32
    largest_of = staged(isa, "f32", "i64", "i64")(_largest)
    sum_of_powers = staged(isa, "f64", "i64", "i64", "f32")(_exponentials)
    powers_and_sum = staged(isa, "f64", "i64", "i64", "f32", "i64")(_exponentials)
    logarithm = staged(isa, "f64", "f64")(lambda v, x: v.log(x))

    @staged(isa, "void", "i64", "i64", "f32")
    def multiply(v, x, n, factor):
        v.elements(n, LANES, lambda i, lanes: v.store(x + i * 4, v.f32(x + i * 4, lanes) * factor))

    def cross_entropy(record, chunk, thread):
        op = op_at(record)
        at, n, nll = chunk * op.stride * 4, op.n_cols, op.nll + chunk * op.nll_stride * 4
        target = load_i64(op.batch.rows + chunk * 8)
        if target < 0:
            store_f32(nll, np.float32(0))
            if op.out != 0:
                clear(op.out + at, n)
            return
        x, out = op.x + at, op.out + at
        largest, logit = np.float64(largest_of(x, n)), np.float64(load_f32(x + target * 4))
        if op.out == 0:
            total = sum_of_powers(x, n, np.float32(largest))
        else:
            total = powers_and_sum(x, n, np.float32(largest), out)
        if largest != largest:
            total = nan  # for the power of NaN is 0
        store_f32(nll, np.float32(logarithm(total) + (largest - logit)))
        if op.out != 0:
            weight = np.float64(1)
            if op.weights != 0:
                weight = np.float64(load_f32(op.weights + chunk * 4))
            # Of a likely target, in float64: its share less 1 is next to nothing.
            of_target = (load_f32(out + target * 4) / total - 1) * weight
            multiply(out, n, np.float32(weight / total))
            store_f32(out + target * 4, np.float32(of_target))

    return cross_entropy
