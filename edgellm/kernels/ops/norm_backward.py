"""Gradients of the root mean square norm: y = x * weight * r, where r = 1 / sqrt(mean(x**2) + epsilon)."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.norm import LANES, inverse_size
from edgellm.kernels.records import RMS_NORM_BACKWARD, RMS_NORM_WEIGHT_SUM
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged


def _row_backward(v: Vocabulary, x: Value, weight: Value, dy: Value, out: Value, n_cols: Value, epsilon: Value) -> None:
    """dx = (g - x * r**2 * mean(g * x)) * r with g = dy * weight."""
    n_whole = n_cols / LANES * LANES
    inverse = inverse_size(v, x, n_cols, epsilon)

    def scaled(i: Value, n: int) -> Value:
        return v.f32(dy + i * 4, n) * v.f32(weight + i * 4, n)

    def add_products(i: Value, n: int, total: Value) -> list[Value]:
        return [v.fma(scaled(i, n), v.f32(x + i * 4, n), total)]

    (products,) = v.loop(
        n_cols / LANES, [v.constant(0.0, F32, LANES)], lambda i, total: add_products(i * LANES, LANES, total)
    )
    (total,) = v.loop(n_cols - n_whole, [products.sum()], lambda i, total: add_products(n_whole + i, 1, total))
    wide = inverse.to(F64)
    share = (total.to(F64) / n_cols.to(F64) * wide * wide).to(F32)

    def store_part(i: Value, n: int) -> None:
        v.store(out + i * 4, (scaled(i, n) - v.f32(x + i * 4, n) * share) * inverse)

    v.elements(n_cols, LANES, store_part)


def build_rms_norm_backward(isa):
    """By x, of each of `n_groups` parts of a token's row by itself."""
    op_at = record_viewer(RMS_NORM_BACKWARD)
    row_backward = staged(isa, "void", *["i64"] * 5, "f64")(_row_backward)

    def rms_norm_backward(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for group in range(op.n_groups):
                at = (token * op.stride + group * op.n_cols) * 4
                row_backward(op.x + at, op.weight, op.dy + at, op.out + at, op.n_cols, op.epsilon)

    return rms_norm_backward


def _add_row(
    v: Vocabulary, x: Value, n_cols: Value, epsilon: Value, first: Value, n: Value, dy: Value, sums: Value
) -> None:
    """sums += dy * x * r for n columns from `first` on."""
    inverse = inverse_size(v, x, n_cols, epsilon)

    def add_part(i: Value, lanes: int) -> None:
        at = (first + i) * 4
        v.store(sums + at, v.fma(v.f32(dy + at, lanes) * v.f32(x + at, lanes), inverse, v.f32(sums + at, lanes)))

    v.elements(n, LANES, add_part)


def build_rms_norm_weight_sum(isa):
    """By the weight: sums [n_cols] of all tokens and groups, in their order. Chunk c is the c-th `chunk_cols` columns.

    Each chunk finds r anew, in rows that the caches still hold.
    """
    op_at = record_viewer(RMS_NORM_WEIGHT_SUM)
    add_row = staged(isa, "void", "i64", "i64", "f64", *["i64"] * 4)(_add_row)

    def rms_norm_weight_sum(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n = min(op.chunk_cols, op.n_cols - first)
        for token in range(op.batch.n_tokens):
            for group in range(op.n_groups):
                at = (token * op.stride + group * op.n_cols) * 4
                add_row(op.x + at, op.n_cols, op.epsilon, first, n, op.dy + at, op.sums)

    return rms_norm_weight_sum
