"""Choosing the scales of blocks: what `edgellm.quants.fit` does in NumPy, in the same float32 operations.

A lane is a block. A tile of as many blocks as a register has lanes is first transposed, so that one register holds the
same position of all of them; from there on every sum runs over registers, and none across lanes. Sums are made in the
order of the NumPy twin and without fused multiplies, so both choose the same scales to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import FIT
from edgellm.kernels.staged import F32, I8, I32, I64, Value, Vocabulary, staged
from edgellm.quants.fit import LEAST_SPREAD, N_POLISHES, N_REFINEMENTS, NEIGHBOURS
from edgellm.quants.grids import Lines, Scales

INFINITY = float("inf")
UNROLLED = 8  # positions in a round of a loop; groups have 16 or 32


def build_fit(isa, fmt):
    """Chunk c is the c-th chunk_blocks of the blocks."""
    op_at = record_viewer(FIT)
    lanes = isa.lanes

    def tile(weighted: bool):
        @staged(isa, "void", *["i64"] * 12)
        def fit_tile(v, x, importance, first, last, targets, n_targets, d, m, scale, minimum, q, scratch):
            t = _Tile(v, fmt, x, importance if weighted else None, first, last, scratch)
            find = _fit_scales if isinstance(fmt.grid, Scales) else _fit_lines
            found = find(t, fmt.grid, targets, n_targets)
            t.store(found, d, m, scale, minimum, q)

        return fit_tile

    plain, weighted = tile(False), tile(True)

    def fit(record, chunk, thread):
        op = op_at(record)
        scratch = op.scratch + thread * op.scratch_bytes
        end = min((chunk + 1) * op.chunk_blocks, op.n_blocks)
        for first in range(chunk * op.chunk_blocks, end, lanes):
            if op.importance == 0:
                plain(
                    op.x, 0, first, end - 1, op.targets, op.n_targets, op.d, op.m, op.scale, op.minimum, op.q, scratch
                )
            else:
                weighted(op.x, op.importance, first, end - 1, op.targets, op.n_targets, op.d, op.m, op.scale,
                         op.minimum, op.q, scratch)  # fmt: skip

    return fit


class _Tile:
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

    def store(self, found: _Found, d: Value, m: Value, scale: Value, minimum: Value, q: Value) -> None:
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
class _Found:
    """d and m of the blocks; and from a group's two integers, what maps its weights to indices of levels."""

    d: Value
    m: Value
    indexer: Callable[[Value, Value], Callable[[Value], Value]]


def _larger(v: Vocabulary, x: Value, value: Value, magnitude: Value) -> list[Value]:
    """Of x and `value` the one of larger magnitude, of equals the second; and its magnitude."""
    size = v.abs(x)
    is_larger = v.greater(size, magnitude)
    return [v.select(is_larger, x, value), v.select(is_larger, size, magnitude)]


# --- one scale for each group ------------------------------------------------------------------------------


def _fit_scales(t: _Tile, grid: Scales, targets: Value, n_targets: Value) -> _Found:
    v, zero = t.v, t.number(0)
    low, high = grid.scale_range

    def sums(group: Value, factor: Value) -> list[Value]:
        def terms(x: Value, counted: Callable[[Value], Value]) -> list[Value]:
            level = _level(t, grid, x * factor)
            weighted = counted(level)
            return [weighted * x, weighted * level]

        return t.sums(group, terms)

    def search(group: Value, *largest: Value) -> list[Value]:
        peak, _ = t.positions(group, none, lambda x, _, *found: _larger(v, x, *found))
        inverse_peak = t.inverse(peak)

        def try_target(i: Value, gain: Value, fitted: Value) -> list[Value]:
            xq, qq = sums(group, v.splat(v.f32(targets + i * 4), t.lanes) * inverse_peak)
            d = xq / qq
            now = xq * d
            return t.choose(v.greater(now, gain), [now, d], [gain, fitted])

        _, fitted = v.loop(n_targets, [zero, zero], try_target)
        t.keep(0, group, fitted)
        return _larger(v, fitted, *largest)

    none = zero, t.number(-1)
    extreme, _ = t.each_group(none, search)
    if low == high:
        d = t.half(extreme)
        t.keep(0, v.constant(0, I64), t.number(1))
    else:
        d = t.half(extreme * float(np.float32(1 / low)))
        inverse_d = t.inverse(d)

        def round_scale(group: Value) -> list[Value]:
            t.keep(0, group, t.rounded(t.group_number(0, group) * inverse_d, low, high))
            return []

        t.each_group([], round_scale)
        (d,) = v.loop(v.constant(N_REFINEMENTS, I64), [d], lambda _, d: [_refine_scales(t, grid, d, sums)])

    def clear(group: Value) -> list[Value]:
        t.keep(1, group, zero)
        return []

    t.each_group([], clear)

    def indexer(scale: Value, _: Value) -> Callable[[Value], Value]:
        factor = t.inverse(d * scale)
        return lambda x: _index(t, grid, x * factor)

    return _Found(d, zero, indexer)


def _refine_scales(t: _Tile, grid: Scales, d: Value, sums: Callable[..., list[Value]]) -> Value:
    v, (low, high) = t.v, grid.scale_range

    def refine(group: Value, *totals: Value) -> list[Value]:
        scale = t.group_number(0, group)
        best = [t.number(-INFINITY), *[t.number(0)] * 3]
        for step in NEIGHBOURS:
            tried = v.minimum(v.maximum(scale + float(step), float(low)), float(high))
            product = d * tried
            xq, qq = sums(group, t.inverse(product))
            gain = product * ((xq + xq) - product * qq)
            best = t.choose(v.greater(gain, best[0]), [gain, tried, xq, qq], best)
        _, kept, xq, qq = best
        t.keep(0, group, kept)
        return [totals[0] + kept * xq, totals[1] + (kept * kept) * qq]

    xd, dd = t.each_group([t.number(-0.0)] * 2, refine)
    refined = t.half(xd / dd)
    return v.select(v.greater(v.abs(refined), t.number(0)), refined, d)


def _level(t: _Tile, grid: Scales, x: Value) -> Value:
    if grid.is_even:
        return t.rounded(x, grid.levels[0], grid.levels[-1])
    return _step_up(t, grid, x, grid.levels)


def _index(t: _Tile, grid: Scales, x: Value) -> Value:
    if grid.is_even:
        return t.rounded(x, grid.levels[0], grid.levels[-1]) - float(grid.levels[0])
    return _step_up(t, grid, x, range(len(grid.levels)))


def _step_up(t: _Tile, grid: Scales, x: Value, values: Sequence[int]) -> Value:
    """The value of the level that x rounds to, found by halving."""

    def among(first: int, last: int) -> Value:
        if first == last:
            return t.number(values[first])
        middle = (first + last) // 2
        above = t.v.greater(x, t.number(float(grid.middles[middle])))
        return t.v.select(above, among(middle + 1, last), among(first, middle))

    return among(0, len(values) - 1)


# --- a scale and a minimum for each group ------------------------------------------------------------------


def _fit_lines(t: _Tile, grid: Lines, targets: Value, n_targets: Value) -> _Found:
    v, zero, top = t.v, t.number(0), grid.scale_max
    is_signed = top == 0
    start = _range(t, v.constant(0, I64))[0] if is_signed else zero

    def sums(group: Value, factor: Value, m: Value) -> list[Value]:
        def terms(x: Value, counted: Callable[[Value], Value]) -> list[Value]:
            x = x - start if is_signed else x
            q = t.rounded((x + m) * factor, 0, grid.q_max)
            wq = counted(q)
            return [wq, wq * q, wq * x]

        return t.sums(group, terms)

    def weights(group: Value) -> list[Value]:
        return t.sums(group, lambda x, counted: [counted(t.number(1)), counted(x - start if is_signed else x)])

    def search(group: Value, *largest: Value) -> list[Value]:
        low, high = _range(t, group)
        if is_signed:
            low, high = zero, high - start
        else:
            low = v.minimum(low, zero)
        w, wx = weights(group)
        m_of_range, inverse_spread = -low, t.inverse(high - low)

        def keep_better(factor: Value, m_now: Value, best: Sequence[Value]) -> list[Value]:
            return _better_line(t, sums(group, factor, m_now), w, wx, is_signed, best)

        def try_target(i: Value, *best: Value) -> list[Value]:
            return keep_better(v.splat(v.f32(targets + i * 4), t.lanes) * inverse_spread, m_of_range, best)

        best = v.loop(n_targets, [zero, zero, m_of_range], try_target)
        _, d, m = v.loop(
            v.constant(N_POLISHES, I64), best, lambda _, *best: keep_better(t.inverse(best[1]), best[2], best)
        )
        t.keep(0, group, d)
        t.keep(1, group, m)
        return [v.maximum(d, largest[0]), v.maximum(m, largest[1])]

    d, m = t.each_group([t.number(-INFINITY)] * 2, search)
    if is_signed:
        d, m = t.half(d), t.half(m - start)
        t.keep(0, v.constant(0, I64), t.number(1))
        t.keep(1, v.constant(0, I64), t.number(1))
    else:
        share = float(np.float32(1 / top))
        d, m = t.half(d * share), t.half(m * share)
        inverse_d, inverse_m = t.inverse(d), t.inverse(m)

        def round_both(group: Value) -> list[Value]:
            t.keep(0, group, t.rounded(t.group_number(0, group) * inverse_d, 0, top))
            t.keep(1, group, t.rounded(t.group_number(1, group) * inverse_m, 0, top))
            return []

        t.each_group([], round_both)
        d, m = v.loop(
            v.constant(N_REFINEMENTS, I64), [d, m], lambda _, d, m: _refine_lines(t, grid, d, m, sums, weights)
        )

    def indexer(scale: Value, minimum: Value) -> Callable[[Value], Value]:
        factor, offset = t.inverse(d * scale), m * minimum
        return lambda x: t.rounded((x + offset) * factor, 0, grid.q_max)

    return _Found(d, m, indexer)


def _range(t: _Tile, group: Value) -> list[Value]:
    """The smallest and the largest weight of a group."""

    def widen(x: Value, _: Any, low: Value, high: Value) -> list[Value]:
        return [t.v.minimum(low, x), t.v.maximum(high, x)]

    return t.positions(group, [t.number(INFINITY), t.number(-INFINITY)], widen)


def _better_line(
    t: _Tile, sums: Sequence[Value], w: Value, wx: Value, is_signed: bool, best: Sequence[Value]
) -> list[Value]:
    """gain, d and m of the line that fits these levels best, or those of `best`."""
    v = t.v
    wq, wqq, wqx = sums
    spans = w * wqq
    determinant = spans - wq * wq
    d = (w * wqx - wq * wx) / determinant
    m = (wq * wqx - wqq * wx) / determinant
    is_line = v.greater(determinant, spans * float(LEAST_SPREAD))
    if not is_signed:
        is_line = t.both(is_line, t.not_less(m, 0))
    d, m = t.choose(is_line, [d, m], [wqx / wqq, t.number(0)])
    gain = d * wqx - m * wx
    is_better = t.both(v.greater(gain, best[0]), v.greater(d, t.number(0)))
    return t.choose(is_better, [gain, d, m], best)


def _refine_lines(
    t: _Tile,
    grid: Lines,
    d: Value,
    m: Value,
    sums: Callable[..., list[Value]],
    weights: Callable[[Value], list[Value]],
) -> list[Value]:
    v, top = t.v, grid.scale_max

    def refine(group: Value, *totals: Value) -> list[Value]:
        scale, minimum = t.group_number(0, group), t.group_number(1, group)
        w, wx = weights(group)
        fitting = t.inverse(m * w)
        best = [t.number(INFINITY), scale, minimum, *[t.number(0)] * 3]
        for step in NEIGHBOURS:
            tried = v.minimum(v.maximum(scale + float(step), 0.0), float(top))
            product = d * tried
            factor = t.inverse(product)

            def keep_better(
                tried_minimum: Value, best: list[Value], tried: Value = tried, product: Value = product,
                factor: Value = factor,
            ) -> tuple[Value, list[Value]]:  # fmt: skip
                offset = m * tried_minimum
                wq, wqq, wqx = sums(group, factor, offset)
                tilt = product * wq - wx
                error = product * (product * wqq - (wqx + wqx)) + offset * (offset * w - (tilt + tilt))
                new = [error, tried, tried_minimum, wq, wqq, wqx]
                return tilt, t.choose(v.greater(best[0], error), new, best)

            tilt, best = keep_better(minimum, best)
            _, best = keep_better(t.rounded(tilt * fitting, 0, top), best)
        _, scale, minimum, wq, wqq, wqx = best
        t.keep(0, group, scale)
        t.keep(1, group, minimum)
        terms = [(scale * scale) * wqq, (scale * minimum) * wq, (minimum * minimum) * w, scale * wqx, minimum * wx]
        return [total + term for total, term in zip(totals, terms, strict=True)]

    dd, dm, mm, xd, xm = t.each_group([t.number(-0.0)] * 5, refine)
    spans = dd * mm
    determinant = spans - dm * dm
    apart = v.greater(determinant, spans * float(LEAST_SPREAD))
    has_no_minima = t.equals(mm, 0)
    new_d, new_m = t.choose(
        apart,
        [(mm * xd - dm * xm) / determinant, (dm * xd - dd * xm) / determinant],
        [v.select(has_no_minima, xd / dd, t.number(0)), t.number(0)],
    )
    new_d, new_m = t.half(new_d), t.half(new_m)
    is_better = t.both(v.greater(new_d, t.number(0)), t.not_less(new_m, 0))
    return t.choose(is_better, [new_d, new_m], [d, m])
