"""Layer norm (Ba et al., 2016): out = (x - mean) / sqrt(variance + epsilon) * weight + bias."""

from __future__ import annotations

from edgellm.kernels.encoder_records import LAYER_NORM
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

LANES = 16


def _sum_of(v: Vocabulary, x: Value, n_cols: Value, term) -> Value:
    """The sum of term(part of x) over a row, as float64."""

    def add(i: Value, total: Value) -> list[Value]:
        return [total + term(v.f32(x + i * (4 * LANES), LANES))]

    def add_one(i: Value, total: Value) -> list[Value]:
        return [total + term(v.f32(x + (n_cols / LANES * LANES + i) * 4))]

    (parts,) = v.loop(n_cols / LANES, [v.constant(0.0, F32, LANES)], add)
    (total,) = v.loop(n_cols - n_cols / LANES * LANES, [parts.sum()], add_one)
    return total.to(F64)


def _norm_row(v: Vocabulary, x: Value, weight: Value, bias: Value, out: Value, n_cols: Value, epsilon: Value, *,
              has_bias: bool) -> None:  # fmt: skip
    mean = (_sum_of(v, x, n_cols, lambda part: part) / n_cols.to(F64)).to(F32)

    def square(part: Value) -> Value:
        distance = part - mean
        return distance * distance

    variance = _sum_of(v, x, n_cols, square) / n_cols.to(F64)
    scale = (v.constant(1.0, F64) / v.call("llvm.sqrt", F64, variance + epsilon)).to(F32)

    def scale_part(i: Value, lanes: int) -> None:
        part = (v.f32(x + i * 4, lanes) - mean) * scale * v.f32(weight + i * 4, lanes)
        v.store(out + i * 4, part + v.f32(bias + i * 4, lanes) if has_bias else part)

    v.elements(n_cols, LANES, scale_part)


def build_layer_norm(isa):
    """Rows with or without a bias; out may be x."""
    op_at = record_viewer(LAYER_NORM)

    @staged(isa, "void", *["i64"] * 5, "f64")
    def with_bias(v, x, weight, bias, out, n_cols, epsilon):
        _norm_row(v, x, weight, bias, out, n_cols, epsilon, has_bias=True)

    @staged(isa, "void", *["i64"] * 5, "f64")
    def without_bias(v, x, weight, bias, out, n_cols, epsilon):
        _norm_row(v, x, weight, bias, out, n_cols, epsilon, has_bias=False)

    def layer_norm(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            if op.bias != 0:
                with_bias(op.x + at, op.weight, op.bias, op.out + at, op.n_cols, op.epsilon)
            else:
                without_bias(op.x + at, op.weight, 0, op.out + at, op.n_cols, op.epsilon)

    return layer_norm
