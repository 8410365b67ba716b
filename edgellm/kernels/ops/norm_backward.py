"""Gradients of norms, see `norm.py`.

Root mean square:  y = x * weight * r, where r = 1 / sqrt(mean(x**2) + epsilon)
Layer norm:        y = (x - mean(x)) * weight * r + bias, where r = 1 / sqrt(variance(x) + epsilon)
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.gradient_records import (
    LAYER_NORM_BACKWARD,
    LAYER_NORM_SUMS,
    RMS_NORM_BACKWARD,
    RMS_NORM_WEIGHT_SUM,
)
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.norm import LANES, inverse_size, mean_and_variance
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged


def _sum(v: Vocabulary, n_cols: Value, add: Callable[[Value, int, Value], Value]) -> Value:
    """float32: add(column, lanes, sum so far) over a row, by lanes, and then over the lanes and what is left."""
    n_whole = n_cols / LANES
    start = v.constant(0.0, F32, LANES)
    (lanes,) = v.loop(n_whole, [start], lambda i, total: [add(i * LANES, LANES, total)])
    rest = n_whole * LANES
    (total,) = v.loop(n_cols - rest, [lanes.sum()], lambda i, total: [add(rest + i, 1, total)])
    return total


def _row_backward(v: Vocabulary, x: Value, weight: Value, dy: Value, out: Value, n_cols: Value, epsilon: Value) -> None:
    """dx = (g - x * r**2 * mean(g * x)) * r with g = dy * weight."""
    inverse = inverse_size(v, x, n_cols, epsilon)

    def scaled(i: Value, n: int) -> Value:
        return v.f32(dy + i * 4, n) * v.f32(weight + i * 4, n)

    total = _sum(v, n_cols, lambda i, n, total: v.fma(scaled(i, n), v.f32(x + i * 4, n), total))
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


def _centered(v: Vocabulary, x: Value, n_cols: Value, epsilon: Value) -> tuple[Value, Value]:
    """float32: the mean of a row, and r."""
    mean, variance = mean_and_variance(v, x, n_cols)
    return mean.to(F32), (v.constant(1.0, F64) / v.call("llvm.sqrt", F64, variance + epsilon)).to(F32)


def _layer_row_backward(v: Vocabulary, x: Value, weight: Value, dy: Value, out: Value, n_cols: Value,
                        epsilon: Value) -> None:  # fmt: skip
    """dx = (g - mean(g) - z * r**2 * mean(g * z)) * r with g = dy * weight, z = x - mean(x)."""
    mean, inverse = _centered(v, x, n_cols, epsilon)

    def scaled(i: Value, n: int) -> Value:
        return v.f32(dy + i * 4, n) * v.f32(weight + i * 4, n)

    products = _sum(v, n_cols, lambda i, n, total: v.fma(scaled(i, n), v.f32(x + i * 4, n) - mean, total))
    total = _sum(v, n_cols, lambda i, n, total: total + scaled(i, n))
    wide, count = inverse.to(F64), n_cols.to(F64)
    share, common = (products.to(F64) / count * wide * wide).to(F32), (total.to(F64) / count).to(F32)

    def store_part(i: Value, n: int) -> None:
        away = v.f32(x + i * 4, n) - mean
        v.store(out + i * 4, (scaled(i, n) - common - away * share) * inverse)

    v.elements(n_cols, LANES, store_part)


def build_layer_norm_backward(isa):
    """As `rms_norm_backward`; groups share their weights, or have each their own."""
    op_at = record_viewer(LAYER_NORM_BACKWARD)
    row_backward = staged(isa, "void", *["i64"] * 5, "f64")(_layer_row_backward)

    def layer_norm_backward(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for group in range(op.n_groups):
                at = (token * op.stride + group * op.n_cols) * 4
                weight = op.weight + group * op.weight_step * 4
                row_backward(op.x + at, weight, op.dy + at, op.out + at, op.n_cols, op.epsilon)

    return layer_norm_backward


def _add_layer_row(
    v: Vocabulary, x: Value, n_cols: Value, epsilon: Value, first: Value, n: Value, dy: Value, sums: Value
) -> None:
    """sums += dy * (x - mean(x)) * r for n columns from `first` on."""
    mean, inverse = _centered(v, x, n_cols, epsilon)

    def add_part(i: Value, lanes: int) -> None:
        at = (first + i) * 4
        away = v.f32(x + at, lanes) - mean
        v.store(sums + at, v.fma(v.f32(dy + at, lanes) * away, inverse, v.f32(sums + at, lanes)))

    v.elements(n, LANES, add_part)


def build_layer_norm_sums(isa):
    """By weights and biases, each where it is trained; see `rms_norm_weight_sum`."""
    op_at, add = record_viewer(LAYER_NORM_SUMS), memory(isa).add_f32
    add_row = staged(isa, "void", "i64", "i64", "f64", *["i64"] * 4)(_add_layer_row)

    def layer_norm_sums(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n = min(op.chunk_cols, op.n_cols - first)
        for token in range(op.batch.n_tokens):
            for group in range(op.n_groups):
                at, own = (token * op.stride + group * op.n_cols) * 4, group * op.step * 4
                if op.sums != 0:
                    add_row(op.x + at, op.n_cols, op.epsilon, first, n, op.dy + at, op.sums + own)
                if op.bias_sums != 0:
                    sums = op.bias_sums + own + first * 4
                    add(sums, op.dy + at + first * 4, sums, n)

    return layer_norm_sums
