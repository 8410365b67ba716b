"""Rows kept in half the memory: float32 to bfloat16, its upper half, and back."""

from __future__ import annotations

from edgellm.kernels.gradient_records import BF16_ROWS
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import I16, I32, Value, Vocabulary, staged

_INFINITY, _QUIET = 0x7F800000, 0x400000


def nearest_bf16(v: Vocabulary, x: Value) -> Value:
    """The bits of the nearest bfloat16 in the lower half of each lane, ties to even; what is no number stays none."""
    bits = x.bitcast(I32)
    odd = (bits >> 16) & 1
    nearest = (bits + odd + 0x7FFF) >> 16
    nan = v.greater(bits & 0x7FFFFFFF, v.like(_INFINITY, bits))
    return v.select(nan, (bits | _QUIET) >> 16, nearest)


def build_to_bf16(isa):
    op_at = record_viewer(BF16_ROWS)

    @staged(isa, "void", "i64", "i64", "i64")
    def convert(v, x, out, n_steps):
        def part(i):
            v.store(out + i * (2 * ROW_ALIGN), nearest_bf16(v, v.f32(x + i * (4 * ROW_ALIGN), ROW_ALIGN)).trunc(I16))

        v.repeat(n_steps, part)

    def to_bf16(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            convert(op.x + token * op.stride * 4, op.halves + token * op.halves_stride * 4, op.stride // ROW_ALIGN)

    return to_bf16


def build_from_bf16(isa):
    op_at = record_viewer(BF16_ROWS)

    @staged(isa, "void", "i64", "i64", "i64")
    def convert(v, halves, x, n_steps):
        def part(i):
            v.store(x + i * (4 * ROW_ALIGN), v.brain_half(halves + i * (2 * ROW_ALIGN), ROW_ALIGN))

        v.repeat(n_steps, part)

    def from_bf16(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            convert(op.halves + token * op.halves_stride * 4, op.x + token * op.stride * 4, op.stride // ROW_ALIGN)

    return from_bf16
