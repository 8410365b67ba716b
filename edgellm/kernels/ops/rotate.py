"""Heads turned by a Hadamard matrix, in blocks of the largest power of two that divides them.

All numbers of a block become sums of all others with one sign or the other: so one large number among them, which would
leave the others few of an integer's steps, is shared out to all. The matrix is its own inverse, and keeps products: of
turned queries and keys they are what they were.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from edgellm.kernels.kv_types import LANES, KVType
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

HALF_ROOT = math.sqrt(0.5)  # one over it for every doubling keeps lengths; kernels may call no library for it


def _turn_registers(v: Vocabulary, x: Value, n: Value, factor: Value) -> None:
    """Every LANES of n numbers among themselves, and times a factor."""

    def some(i: Value) -> None:
        at = x + i * (4 * LANES)
        numbers = v.f32(at, LANES)
        for step in (1, 2, 4, 8):
            sign = v.constant([-1.0 if lane & step else 1.0 for lane in range(LANES)], F32)
            partner = v.shuffle(numbers, numbers, [lane ^ step for lane in range(LANES)])
            numbers = v.fma(numbers, sign, partner)
        v.store(at, numbers * factor)

    v.repeat(n / LANES, some)


def _turn_pairs(v: Vocabulary, x: Value, n: Value, step: Value) -> None:
    """Registers with those `step` of them further on: a + b and a - b."""

    def some(i: Value) -> None:
        block = i / step
        a_at = x + (block * step * 2 + (i - block * step)) * (4 * LANES)
        b_at = a_at + step * (4 * LANES)
        a, b = v.f32(a_at, LANES), v.f32(b_at, LANES)
        v.store(a_at, a + b)
        v.store(b_at, a - b)

    v.repeat(n / (2 * LANES), some)


def rotation(isa, kind: KVType):
    """rotate(x, n): float32 [n] at an address, n a multiple of LANES, in its place; nothing where heads stay."""
    if not kind.is_rotated:

        @njit(error_model="numpy")
        def stay(x, n):
            pass

        return stay

    turn_registers = staged(isa, "void", "i64", "i64", "f32")(_turn_registers)
    turn_pairs = staged(isa, "void", *["i64"] * 3)(_turn_pairs)

    @njit(error_model="numpy")
    def rotate(x, n):
        block = n & -n
        factor, size = 1.0, block
        while size > 1:
            factor, size = factor * HALF_ROOT, size >> 1
        turn_registers(x, n, np.float32(factor))
        step = 1
        while 2 * step * LANES <= block:
            turn_pairs(x, n, step)
            step *= 2

    return rotate


def turned_head(isa, kind: KVType):
    """turned(x, n, spare): where a head at x is to be found as the cache stores it; turned it is in spare memory."""
    if not kind.is_rotated:

        @njit(error_model="numpy")
        def as_it_is(x, n, spare):
            return x

        return as_it_is

    rotate = rotation(isa, kind)
    copy = staged(isa, "void", *["i64"] * 3)(_copy)

    @njit(error_model="numpy")
    def turned(x, n, spare):
        copy(x, spare, n)
        rotate(spare, n)
        return spare

    return turned


def _copy(v: Vocabulary, x: Value, out: Value, n: Value) -> None:
    v.repeat(n / LANES, lambda i: v.store(out + i * (4 * LANES), v.f32(x + i * (4 * LANES), LANES)))
