"""The search for a scale and a minimum for each group: `_fit_lines` of `edgellm.quants.fit`, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgellm.kernels.ops.fit_tile import INFINITY, Found, Tile
from edgellm.kernels.staged import I64, Value
from edgellm.quants.fit import LEAST_SPREAD, N_POLISHES, N_REFINEMENTS, NEIGHBOURS
from edgellm.quants.grids import Lines


def fit_lines(t: Tile, grid: Lines, targets: Value, n_targets: Value) -> Found:
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

    return Found(d, m, indexer)


def _range(t: Tile, group: Value) -> list[Value]:
    """The smallest and the largest weight of a group."""

    def widen(x: Value, _: Any, low: Value, high: Value) -> list[Value]:
        return [t.v.minimum(low, x), t.v.maximum(high, x)]

    return t.positions(group, [t.number(INFINITY), t.number(-INFINITY)], widen)


def _better_line(
    t: Tile, sums: Sequence[Value], w: Value, wx: Value, is_signed: bool, best: Sequence[Value]
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
    t: Tile,
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
