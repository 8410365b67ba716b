"""Activations to int8 in groups of 32, each with the scale that its largest magnitude needs; twice for two planes."""

from __future__ import annotations

from functools import partial, reduce

from numba import njit

from edgellm.kernels.group_sums import ALL_SUMS, GroupSums
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.rounding import as_magnitudes, scale_and_inverse
from edgellm.kernels.ops.tile_products import GROUP
from edgellm.kernels.records import LEAST_QUANTIZED, PLANE_BITS, QUANTIZE
from edgellm.kernels.staged import I8, I32, Value, Vocabulary, staged

LANES = 16  # sums at a time


def _quantize_group(v: Vocabulary, n_planes: int, x: list[Value], q: list[Value], d: Value, halves: Value) -> None:
    """32 numbers, in two registers, to the int8 of every plane at q, with their scale and the sums of both halves."""
    scale, inverse = scale_and_inverse(v, v.maximum(*(as_magnitudes(v, half) for half in x)), 127.0, LEAST_QUANTIZED)
    rounded = [v.round_to_i32(half * inverse) for half in x]
    sums = _store_bytes(v, rounded, q[0])
    if n_planes == 2:
        # What rounding left over, in finer steps; half a step of the first plane would be 128 of them.
        rest = [v.fma(-half.to_f32(), scale, number) for half, number in zip(rounded, x, strict=True)]
        finer = [number * inverse * float(1 << PLANE_BITS) for number in rest]
        second = _store_bytes(
            v, [v.round_to_i32(v.maximum(v.minimum(number, 127.0), -127.0)) for number in finer], q[1]
        )
        sums = [(coarse << PLANE_BITS) + fine for coarse, fine in zip(sums, second, strict=True)]
        scale = scale * 2.0**-PLANE_BITS
    v.store(d, scale)
    v.store(halves, v.vector_of(sums))


def _store_bytes(v: Vocabulary, halves: list[Value], q: Value) -> list[Value]:
    """Two registers of small integers as bytes at q; returns the sum of each."""
    bytes_ = v.concat(*(half.trunc(I8) for half in halves))
    v.store(q, bytes_)
    # One multiply by ones gives the sums of every four bytes.
    fours = v.dot_u8_s8(v.constant(0, I32, 8), v.constant(1, I8, 32), bytes_, 1)
    return [fours[:4].sum(), fours[4:].sum()]


def _quantize_row(
    v: Vocabulary, x: Value, n_groups: Value, q: Value, d: Value, halves: Value, *, n_planes: int
) -> None:
    """float32 [n_groups * 32] at x becomes int8 at q, plane after plane, with scales and sums (records.QUANTIZED)."""

    def body(g: Value) -> None:
        planes = [q + (n_groups * plane + g) * 32 for plane in range(n_planes)]
        numbers = [v.f32(x + g * 128 + 64 * half, 16) for half in range(2)]
        _quantize_group(v, n_planes, numbers, planes, d + g * 4, halves + g * 8)

    v.repeat(n_groups, body)


def row_quantizer(isa, n_planes: int):
    """quantize_row(x, n_groups, q, d, halves): float32 [n_groups * 32] at x as int8."""
    return staged(isa, "void", *["i64"] * 5)(partial(_quantize_row, n_planes=n_planes))


def _make_sums(v: Vocabulary, halves: Value, d: Value, n_groups: Value, out: Value, *, kind: GroupSums) -> None:
    """The sums of each group, or of each half of one, as weights of some formats need them."""
    per_group = GROUP // kind.scale_group

    def sums_from(i: Value, n: int) -> Value:
        if per_group == 2:
            return v.load(halves + i * 4, I32, n)
        pairs = v.load(halves + i * 8, I32, 2 * n)
        return pairs[0::2] + pairs[1::2]

    def scales_from(i: Value, n: int) -> Value:
        if per_group == 1 or n == 1:
            return v.f32(d + i / per_group * 4, n)
        scales = v.f32(d + i / per_group * 4, n // per_group)
        return v.shuffle(scales, scales, [lane // per_group for lane in range(n)])

    def make(i: Value, n: int) -> None:
        sums = sums_from(i, n)
        v.store(out + i * 4, sums * -kind.zero if kind.zero else sums.to_f32() * scales_from(i, n))

    v.elements(n_groups * per_group, LANES, make)


def sums_maker(isa, kind: GroupSums):
    """make_sums(to, token, n_groups): of one token, where somebody needs them."""
    per_group, field = GROUP // kind.scale_group, kind.field

    @staged(isa, "void", *["i64"] * 4)
    def make_row(v, *args):
        _make_sums(v, *args, kind=kind)

    @njit(error_model="numpy")
    def make_sums(to, token, n_groups):
        out = getattr(to, field)
        if out != 0:
            at = token * n_groups * 4
            make_row(to.halves + at * 2, to.d + at, n_groups, out + at * per_group)

    return make_sums


def _one_after_the_other(first, then):
    @njit(error_model="numpy")
    def both(to, token, n_groups):
        first(to, token, n_groups)
        then(to, token, n_groups)

    return both


def build_quantize(isa, n_planes=1):
    op_at = record_viewer(QUANTIZE)
    quantize_row = row_quantizer(isa, n_planes)
    make_sums = reduce(_one_after_the_other, [sums_maker(isa, kind) for kind in ALL_SUMS])

    def quantize(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * n_groups
            quantize_row(
                op.x + token * op.stride * 4,
                n_groups,
                op.to.q + at * 32 * n_planes,
                op.to.d + at * 4,
                op.to.halves + at * 8,
            )
            make_sums(op.to, token, n_groups)

    return quantize
