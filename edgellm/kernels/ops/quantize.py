"""Activations to int8 in groups of 32, each with the scale that its largest magnitude needs; twice for two planes."""

from __future__ import annotations

from functools import partial

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import QUANTIZE
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

LEAST = 2.0**-121  # largest / 127 is then still a float32 whose inverse is finite


def _quantize_group(v: Vocabulary, x: list[Value], q: Value, d: Value, sum32: Value, sum16: Value) -> list[Value]:
    """32 numbers, in two registers, to int8 at q with their scale and sums; returns what rounding left over."""
    # As integers, magnitudes have the same order, and NaN comes after infinity: it spoils the scale.
    magnitudes = [v.abs(half).bitcast(I32) for half in x]
    largest = v.maximum(*magnitudes).max().bitcast(F32)
    scale = largest * (1 / 127)
    # Of what is smaller, the inverse would be infinite: all becomes 0.
    is_some = v.greater(largest, v.constant(LEAST, F32))
    inverse = v.select(is_some, v.constant(127.0, F32) / largest, v.constant(0.0, F32))
    rounded = [v.round_to_i32(half * inverse) for half in x]
    bytes_ = v.concat(*(half.trunc(I8) for half in rounded))
    # One multiply by ones gives the sums of every four bytes.
    fours = v.dot_u8_s8(v.constant(0, I32, 8), v.constant(1, I8, 32), bytes_, 1)
    halves = v.vector_of([fours[:4].sum(), fours[4:].sum()]).to_f32() * scale
    v.store(q, bytes_)
    v.store(d, scale)
    v.store(sum16, halves)
    v.store(sum32, halves[0] + halves[1])
    return [v.fma(-half.to_f32(), scale, number) for half, number in zip(rounded, x, strict=True)]


def _quantize_row(v: Vocabulary, x: Value, n_groups: Value, q: Value, d: Value, sum32: Value, sum16: Value, *,
                  n_planes: int) -> None:  # fmt: skip
    """float32 [n_groups * 32] at x becomes int8 at q, with scales and sums, plane after plane (records.QUANTIZED)."""

    def body(g: Value) -> None:
        rest = [v.f32(x + g * 128 + 64 * half, 16) for half in range(2)]
        for plane in range(n_planes):
            at = n_groups * plane + g
            rest = _quantize_group(v, rest, q + at * 32, d + at * 4, sum32 + at * 4, sum16 + at * 8)

    v.repeat(n_groups, body)


def build_quantize(isa, n_planes=1):
    op_at = record_viewer(QUANTIZE)
    quantize_row = staged(isa, "void", *["i64"] * 6)(partial(_quantize_row, n_planes=n_planes))

    def quantize(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * n_groups * n_planes
            quantize_row(
                op.x + token * op.stride * 4,
                n_groups,
                op.to.q + at * 32,
                op.to.d + at * 4,
                op.to.sum32 + at * 4,
                op.to.sum16 + at * 8,
            )

    return quantize
