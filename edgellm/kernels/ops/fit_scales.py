"""The search for one scale for each group: `_fit_scales` of `edgellm.quants.fit`, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgellm.kernels.ops.fit_tile import INFINITY, Found, Tile, larger_of
from edgellm.kernels.staged import I64, Value
from edgellm.quants.fit import N_REFINEMENTS, NEIGHBOURS
from edgellm.quants.grids import Scales


def fit_scales(t: Tile, grid: Scales, targets: Value, n_targets: Value) -> Found:
    v, zero = t.v, t.number(0)
    low, high = grid.scale_range

    def sums(group: Value, factor: Value) -> list[Value]:
        def terms(x: Value, counted: Callable[[Value], Value]) -> list[Value]:
            level = _level(t, grid, x * factor)
            weighted = counted(level)
            return [weighted * x, weighted * level]

        return t.sums(group, terms)

    def search(group: Value, *largest: Value) -> list[Value]:
        peak, _ = t.positions(group, none, lambda x, _, *found: larger_of(v, x, *found))
        inverse_peak = t.inverse(peak)

        def try_target(i: Value, gain: Value, fitted: Value) -> list[Value]:
            xq, qq = sums(group, v.splat(v.f32(targets + i * 4), t.lanes) * inverse_peak)
            d = xq / qq
            now = xq * d
            return t.choose(v.greater(now, gain), [now, d], [gain, fitted])

        _, fitted = v.loop(n_targets, [zero, zero], try_target)
        t.keep(0, group, fitted)
        return larger_of(v, fitted, *largest)

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

    return Found(d, zero, indexer)


def _refine_scales(t: Tile, grid: Scales, d: Value, sums: Callable[..., list[Value]]) -> Value:
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


def _level(t: Tile, grid: Scales, x: Value) -> Value:
    if grid.is_even:
        return t.rounded(x, grid.levels[0], grid.levels[-1])
    return _step_up(t, grid, x, grid.levels)


def _index(t: Tile, grid: Scales, x: Value) -> Value:
    if grid.is_even:
        return t.rounded(x, grid.levels[0], grid.levels[-1]) - float(grid.levels[0])
    return _step_up(t, grid, x, range(len(grid.levels)))


def _step_up(t: Tile, grid: Scales, x: Value, values: Sequence[int]) -> Value:
    """The value of the level that x rounds to, found by halving."""

    def among(first: int, last: int) -> Value:
        if first == last:
            return t.number(values[first])
        middle = (first + last) // 2
        above = t.v.greater(x, t.number(float(grid.middles[middle])))
        return t.v.select(above, among(middle + 1, last), among(first, middle))

    return among(0, len(values) - 1)
