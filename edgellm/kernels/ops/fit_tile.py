"""Blocks side by side in the lanes of registers, and the words in which the scales of all are searched for at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgellm.kernels.staged import F32, I8, I32, I64, Value, Vocabulary

INFINITY = float("inf")
UNROLLED = 8  # positions in a round of a loop; groups have 16 or 32


class Tile:
    """Blocks side by side in lanes, and the words that both searches need.

    In scratch memory: weights [block_size, lanes], divided by the unit of their block; their importance, likewise; and
    two numbers of each group.
    """

    def __init__(
        self, v: Vocabulary, fmt, x: Value, importance: Value | None, first: Value, last: Value, scratch: Value
    ) -> None:
        self.v, self.fmt, self.grid = v, fmt, fmt.grid
        self.lanes = v.isa.lanes
        self.bytes = 4 * self.lanes  # of a register
        # Behind the last block, lanes repeat it.
        self.blocks = [v.minimum(first + lane, last) for lane in range(self.lanes)]
        self.x = scratch
        self.importance: Value | None = None
        self.groups = scratch + 2 * fmt.block_size * self.bytes
        self._transpose(x, self.x)
        if importance is not None:
            self.importance = scratch + fmt.block_size * self.bytes
            self._transpose(importance, self.importance)
        self._divide_by_unit()

    def _transpose(self, source: Value, to: Value) -> None:
        v = self.v
        rows = [source + block * (4 * self.fmt.block_size) for block in self.blocks]
        if self.lanes % 8 == 0:

            def eight(i: Value) -> None:
                for lane in range(0, self.lanes, 8):
                    columns = v.transpose8([v.f32(row + i * 32, 8) for row in rows[lane : lane + 8]])
                    for j, column in enumerate(columns):
                        v.store(to + i * (8 * self.bytes) + (j * self.bytes + lane * 4), column)

            v.repeat(v.constant(self.fmt.block_size // 8, I64), eight)
        else:
            v.repeat(
                v.constant(self.fmt.block_size, I64),
                lambda i: v.store(to + i * self.bytes, v.vector_of([v.f32(row + i * 4) for row in rows])),
            )

    def _divide_by_unit(self) -> None:
        """By a power of two near the largest weight of the block."""
        v, n = self.v, self.v.constant(self.fmt.block_size, I64)

        def larger(i: Value, peak: Value) -> list[Value]:
            return [v.maximum(v.abs(self._at(self.x, i)), peak)]

        (peak,) = v.loop(n, [self.number(0)], larger)
        bits = v.maximum(v.minimum(peak.bitcast(I32) & 0x7F800000, 253 << 23), 1 << 23)
        self.unit = bits.bitcast(F32)
        self.inverse_unit = (v.like(254 << 23, bits) - bits).bitcast(F32)
        v.repeat(n, lambda i: v.store(self.x + i * self.bytes, self._at(self.x, i) * self.inverse_unit))

    def _at(self, base: Value, i: Value | int) -> Value:
        return self.v.f32(base + i * self.bytes, self.lanes)

    def number(self, value: float) -> Value:
        return self.v.constant(float(value), F32, self.lanes)

    # --- numbers of groups ----------------------------------------------------------------------------------

    def group_number(self, which: int, group: Value) -> Value:
        return self._at(self.groups, group + which * self.grid.n_groups)

    def keep(self, which: int, group: Value, value: Value) -> None:
        self.v.store(self.groups + (group + which * self.grid.n_groups) * self.bytes, value)

    def each_group(self, carried: Sequence[Value], body: Callable[..., Sequence[Value]]) -> list[Value]:
        return self.v.loop(self.v.constant(self.grid.n_groups, I64), carried, body)

    def positions(self, group: Value, carried: Sequence[Value], body: Callable[..., Sequence[Value]]) -> list[Value]:
        """carried = body(x, counted, *carried) for the weights of a group, one position after the other.

        counted(number) is the number times the importance of the weight.
        """
        first = group * self.grid.size

        def several(i: Value, *carried: Value) -> Sequence[Value]:
            for j in range(UNROLLED):
                at = first + i * UNROLLED + j
                carried = tuple(body(self._at(self.x, at), partial(self._counted, at), *carried))
            return carried

        return self.v.loop(self.v.constant(self.grid.size // UNROLLED, I64), carried, several)

    def sums(self, group: Value, terms: Callable[[Value, Callable[[Value], Value]], Sequence[Value]]) -> list[Value]:
        """The sums of terms(x, counted) over the weights of a group, from the first to the last."""

        def add(x: Value, counted: Callable[[Value], Value], *totals: Value) -> list[Value]:
            return [total + term for total, term in zip(totals, terms(x, counted), strict=True)]

        n_terms = len(terms(self.number(0), lambda number: number))
        return self.positions(group, [self.number(-0.0)] * n_terms, add)

    def _counted(self, i: Value, number: Value) -> Value:
        return number if self.importance is None else self._at(self.importance, i) * number

    # --- arithmetic -----------------------------------------------------------------------------------------

    def inverse(self, d: Value) -> Value:
        reciprocal = self.number(1) / d
        is_finite = self.v.greater(self.number(INFINITY), self.v.abs(reciprocal))
        return self.v.select(is_finite, reciprocal, self.number(0))

    def half(self, d: Value) -> Value:
        """As float16 will hold it, when multiplied by the unit."""
        return self.v.f16_to_f32(self.v.f32_to_f16(d * self.unit)) * self.inverse_unit

    def rounded(self, x: Value, low: float, high: float) -> Value:
        v = self.v
        return v.rint(v.minimum(v.maximum(x, float(low)), float(high)))

    def both(self, a: Value, b: Value) -> Value:
        return Value(self.v, self.v.builder.and_(a.llvm, b.llvm))

    def not_less(self, a: Value, number: float) -> Value:
        return Value(self.v, self.v.builder.fcmp_ordered(">=", a.llvm, self.number(number).llvm))

    def equals(self, a: Value, number: float) -> Value:
        return Value(self.v, self.v.builder.fcmp_ordered("==", a.llvm, self.number(number).llvm))

    def choose(self, condition: Value, new: Sequence[Value], old: Sequence[Value]) -> list[Value]:
        return [self.v.select(condition, a, b) for a, b in zip(new, old, strict=True)]

    # --- what was found -------------------------------------------------------------------------------------

    def store(self, found: Found, d: Value, m: Value, scale: Value, minimum: Value, q: Value) -> None:
        """Each lane's numbers to its block."""
        n_groups, size = self.grid.n_groups, self.grid.size
        self._scatter(d, 4, found.d * self.unit)
        self._scatter(m, 4, found.m * self.unit)

        def of_group(group: Value, *_: Value) -> list[Value]:
            numbers = self.group_number(0, group), self.group_number(1, group)
            for to, number in zip((scale, minimum), numbers, strict=True):
                self._scatter(to + group, n_groups, self.v.round_to_i32(number).trunc(I8))
            index_of = found.indexer(*numbers)

            def store_index(x: Value, _: Any, at: Value) -> list[Value]:
                self._scatter(at, self.fmt.block_size, self.v.round_to_i32(index_of(x)).trunc(I8))
                return [at + 1]

            self.positions(group, [q + group * size], store_index)
            return []

        self.each_group([], of_group)

    def _scatter(self, to: Value, stride: int, values: Value) -> None:
        for lane, block in enumerate(self.blocks):
            self.v.store(to + block * stride, values[lane])


@dataclass
class Found:
    """d and m of the blocks; and from a group's two integers, what maps its weights to indices of levels."""

    d: Value
    m: Value
    indexer: Callable[[Value, Value], Callable[[Value], Value]]


def larger_of(v: Vocabulary, x: Value, value: Value, magnitude: Value) -> list[Value]:
    """Of x and `value` the one of larger magnitude, of equals the second; and its magnitude."""
    size = v.abs(x)
    is_larger = v.greater(size, magnitude)
    return [v.select(is_larger, x, value), v.select(is_larger, size, magnitude)]
