"""Norms of rows or of heads.

Root mean square (Zhang and Sennrich, 2019):  x / sqrt(mean(x**2) + epsilon) * weight
Layer norm (Ba et al., 2016):                 (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import LAYER_NORM, RMS_NORM
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

LANES = 16


def inverse_size(v: Vocabulary, x: Value, n_cols: Value, epsilon: Value) -> Value:
    """1 / sqrt(mean(x**2) + epsilon)"""

    def add_squares(i: Value, total: Value) -> list[Value]:
        part = v.f32(x + i * (4 * LANES), LANES)
        return [v.fma(part, part, total)]

    def add_square(i: Value, total: Value) -> list[Value]:
        part = v.f32(x + (n_cols / LANES * LANES + i) * 4)
        return [v.fma(part, part, total)]

    (squares,) = v.loop(n_cols / LANES, [v.constant(0.0, F32, LANES)], add_squares)
    (total,) = v.loop(n_cols - n_cols / LANES * LANES, [squares.sum()], add_square)
    mean = total.to(F64) / n_cols.to(F64)
    return (v.constant(1.0, F64) / v.call("llvm.sqrt", F64, mean + epsilon)).to(F32)


def _norm_row(v: Vocabulary, x: Value, weight: Value, out: Value, n_cols: Value, epsilon: Value) -> None:
    scale = inverse_size(v, x, n_cols, epsilon)

    def scale_part(i: Value, lanes: int) -> None:
        v.store(out + i * 4, v.f32(x + i * 4, lanes) * scale * v.f32(weight + i * 4, lanes))

    v.elements(n_cols, LANES, scale_part)


def build_rms_norm(isa):
    """Each of `n_groups` parts of a token's row by itself (the heads, for query and key norms), one weight for all."""
    op_at = record_viewer(RMS_NORM)
    norm_row = staged(isa, "void", "i64", "i64", "i64", "i64", "f64")(_norm_row)

    def rms_norm(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for group in range(op.n_groups):
                at = group * op.n_cols
                norm_row(
                    op.x + (token * op.stride + at) * 4,
                    op.weight,
                    op.out + (token * op.out_stride + at) * 4,
                    op.n_cols,
                    op.epsilon,
                )

    return rms_norm


def _sum(v: Vocabulary, x: Value, n_cols: Value, add: Callable[[Value, Value], Value]) -> Value:
    """float64: add(number, sum so far) over a row, by lanes, and then over the lanes and what is left."""
    n_whole = n_cols / LANES
    (lanes,) = v.loop(n_whole, [v.constant(0.0, F32, LANES)], lambda i, total: [add(v.f32(x + i * 64, LANES), total)])
    rest = x + n_whole * (4 * LANES)
    (total,) = v.loop(n_cols - n_whole * LANES, [lanes.sum()], lambda i, total: [add(v.f32(rest + i * 4), total)])
    return total.to(F64)


def mean_and_variance(v: Vocabulary, x: Value, n_cols: Value) -> tuple[Value, Value]:
    """Of a row, float64."""
    mean = _sum(v, x, n_cols, lambda part, total: part + total) / n_cols.to(F64)
    rounded = mean.to(F32)

    def add_square(part: Value, total: Value) -> Value:
        away = part - rounded
        return v.fma(away, away, total)

    return mean, _sum(v, x, n_cols, add_square) / n_cols.to(F64)


def _layer_norm_row(v: Vocabulary, x: Value, weight: Value, bias: Value, out: Value, n_cols: Value,
                    epsilon: Value) -> None:  # fmt: skip
    exact, variance = mean_and_variance(v, x, n_cols)
    mean = exact.to(F32)
    scale = (v.constant(1.0, F64) / v.call("llvm.sqrt", F64, variance + epsilon)).to(F32)

    def scale_part(i: Value, lanes: int) -> None:
        part = (v.f32(x + i * 4, lanes) - mean) * scale
        v.store(out + i * 4, part * v.f32(weight + i * 4, lanes) + v.f32(bias + i * 4, lanes))

    v.elements(n_cols, LANES, scale_part)


def build_layer_norm(isa):
    """As `rms_norm`; groups share their weights and biases, or have each their own."""
    op_at = record_viewer(LAYER_NORM)
    norm_row = staged(isa, "void", *["i64"] * 5, "f64")(_layer_norm_row)

    def layer_norm(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for group in range(op.n_groups):
                at, own = group * op.n_cols, group * op.weight_step * 4
                norm_row(
                    op.x + (token * op.stride + at) * 4,
                    op.weight + own,
                    op.bias + own,
                    op.out + (token * op.out_stride + at) * 4,
                    op.n_cols,
                    op.epsilon,
                )

    return layer_norm
