"""Root mean square norm (Zhang and Sennrich, 2019): out = x / sqrt(mean(x**2) + epsilon) * weight."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import RMS_NORM
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
