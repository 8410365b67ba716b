"""Activations to int8 in groups of 32, each with the scale that its largest magnitude needs."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import QUANTIZE
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged


def quantize_row(v: Vocabulary, x: Value, n_groups: Value, q: Value, d: Value, sum32: Value, sum16: Value) -> None:
    """float32 [n_groups * 32] at x becomes int8 at q, with scales and sums (see records.QUANTIZED)."""

    def body(g: Value) -> list[Value]:
        values = [v.f32(x + g * 128 + 64 * half, 16) for half in range(2)]
        # As integers, magnitudes have the same order, and NaN comes after infinity: it spoils the scale.
        magnitudes = [v.abs(half).bitcast(I32) for half in values]
        largest = v.maximum(*magnitudes).max().bitcast(F32)
        scale = largest * (1 / 127)
        inverse = v.select(
            v.greater(largest, v.constant(0.0, F32)), v.constant(127.0, F32) / largest, v.constant(0.0, F32)
        )
        bytes_ = v.concat(*(v.round_to_i32(half * inverse).trunc(I8) for half in values))
        # One multiply by ones gives the sums of every four bytes.
        fours = v.dot_u8_s8(v.constant(0, I32, 8), v.constant(1, I8, 32), bytes_, 1)
        halves = v.vector_of([fours[:4].sum(), fours[4:].sum()]).to_f32() * scale
        v.store(q + g * 32, bytes_)
        v.store(d + g * 4, scale)
        v.store(sum16 + g * 8, halves)
        v.store(sum32 + g * 4, halves[0] + halves[1])
        return []

    v.loop(n_groups, [], body)


def build_quantize(isa):
    op_at = record_viewer(QUANTIZE)

    @staged(isa, "void", *["i64"] * 6)
    def quantize_one(v, *args):
        quantize_row(v, *args)

    def quantize(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * n_groups
            quantize_one(
                op.x + token * op.stride * 4,
                n_groups,
                op.to.q + at * 32,
                op.to.d + at * 4,
                op.to.sum32 + at * 4,
                op.to.sum16 + at * 8,
            )

    return quantize
