"""Float32 numbers to integers with a scale: what the largest of them needs."""

from __future__ import annotations

from edgellm.kernels.staged import F32, I16, I32, Value, Vocabulary


def as_magnitudes(v: Vocabulary, x: Value) -> Value:
    """As integers, which have the same order; there NaN comes after infinity, so it spoils the scale."""
    return v.abs(x).bitcast(I32)


def scale_and_inverse(v: Vocabulary, magnitudes: Value, most: float, least: float) -> tuple[Value, Value]:
    """The scale with which the largest of some numbers is the integer `most`, and its inverse.

    least:  of a largest magnitude that is no more, the inverse would be infinite; it is 0 then, and so is all.
    """
    largest = magnitudes.max().bitcast(F32)
    is_some = v.greater(largest, v.constant(least, F32))
    inverse = v.select(is_some, v.constant(most, F32) / largest, v.constant(0.0, F32))
    return largest * (1 / most), inverse


def round_row(
    v: Vocabulary, x: Value, n: Value, lanes: int, most: float, least: float, out: Value, scale_at: Value
) -> None:
    """n registers of float32 at x as int16 at out, which may be the same place, and their scale."""

    def magnitude(i: Value, largest: Value) -> list[Value]:
        return [v.maximum(largest, as_magnitudes(v, v.f32(x + i * (4 * lanes), lanes)))]

    (magnitudes,) = v.loop(n, [v.constant(0, I32, lanes)], magnitude)
    scale, inverse = scale_and_inverse(v, magnitudes, most, least)
    v.store(scale_at, scale)
    store_int16(v, x, n, lanes, inverse, out)


def store_int16(v: Vocabulary, x: Value, n: Value, lanes: int, inverse: Value, out: Value) -> None:
    """n registers of float32 at x, times `inverse`, as int16 at out: what is read is never before what is written."""

    def rounded(i: Value) -> None:
        part = v.f32(x + i * (4 * lanes), lanes) * inverse
        v.store(out + i * (2 * lanes), v.round_to_i32(part).trunc(I16))

    v.repeat(n, rounded)
