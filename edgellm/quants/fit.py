"""Choosing the scales of a block: which few numbers reproduce its weights with the least squared error.

The error of a weight counts as much as its `importance`, the mean square of the input it is multiplied with: that sum
is the expected squared error of the layer's output. Without an importance matrix all weights count the same.

The search has three parts. For every group of weights that share a scale, some ways to round them are tried; each
time least squares say which scale fits those integers best, and the best of all is kept. Then the group scales are
rounded themselves, to integers times the scale of the block. As that moves them, every group looks around among the
integers for the scale that suits its weights best now, and least squares fit the scale of the block to all of them.

Everything is computed for many blocks side by side, in float32 and in one fixed order of sums, so that the compiled
twin (`edgellm.kernels.ops.fit`) gives the same bytes on every machine. Arrays have positions in a group first, then
groups, then blocks; blocks are first brought to a peak about 1, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.quants.grids import Fitted, Lines, Scales
from edgellm.quants.protocols import Gridded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.quants.grids import Floats, Ints


N_POLISHES = 2  # of a line: rounding with what was just fitted, and fitting again
N_REFINEMENTS = 2  # of the block's scale and its groups' integers, in turns
NEIGHBOURS = (0, -1, 1)  # integers that a group tries around its present scale
LEAST_SPREAD = np.float32(1e-5)  # of a determinant beside its terms: below, all weights sit on one level

_TOP_BITS = np.int32(254 << 23)


def fit(block_format: Gridded, x: Floats, importance: Floats | None = None) -> Fitted:
    """float32 [n, block_size] -> scales and levels on the format's grid; importance has the shape of x.

    Where weights are too large for float16 scales, d or m is infinite and the rest means nothing.
    """
    grid = block_format.grid
    assert grid is not None
    shape = (len(x), grid.n_groups, grid.size)
    values = np.ascontiguousarray(x.reshape(shape).transpose(2, 1, 0))
    weights = np.ones_like(values) if importance is None else importance.reshape(shape).transpose(2, 1, 0)
    with np.errstate(all="ignore"):
        unit, inverse_unit = _power_of_two(np.abs(x).max(-1))
        find = _fit_scales if isinstance(grid, Scales) else _fit_lines
        d, m, scale, minimum, q = find(grid, values * inverse_unit, weights, _Halves(unit, inverse_unit))  # type: ignore[arg-type]
    by_block = q.transpose(2, 1, 0).reshape(x.shape).astype(np.uint8)
    return Fitted(d * unit, m * unit, scale.T.astype(np.int8), minimum.T.astype(np.int8), by_block)


# --- one scale for each group ------------------------------------------------------------------------------


def _fit_scales(grid: Scales, x: Floats, weights: Floats, half: _Halves) -> tuple[Floats, ...]:
    def sums(factor: Floats) -> tuple[Floats, Floats]:
        """Of weights * x * level and weights * level**2, by groups, when x * factor is rounded."""
        level = _levels(grid, x * factor)
        weighted = weights * level
        return _total(weighted * x), _total(weighted * level)

    inverse_peak = inverse(_extreme(x))
    best_gain: Floats = np.zeros_like(inverse_peak)
    fitted: Floats = np.zeros_like(inverse_peak)
    for target in grid.targets:
        xq, qq = sums(target * inverse_peak)
        d: Floats = xq / qq
        gain = xq * d  # how much squared error the best scale for these levels removes
        better = gain > best_gain
        best_gain, fitted = np.where(better, gain, best_gain), np.where(better, d, fitted)

    low, high = grid.scale_range
    if low == high:
        d, scale = half.rounded(fitted[0]), np.ones_like(fitted)
    else:
        d = half.rounded(_extreme(fitted) * np.float32(1 / low))
        scale = np.rint(np.clip(fitted * inverse(d), low, high))
        for _ in range(N_REFINEMENTS):
            scale, refined = _refine_scales(scale, d, sums, low, high)
            refined = half.rounded(refined)
            d = np.where(np.abs(refined) > 0, refined, d)
    q = _indices(grid, x * inverse(d * scale))
    return d, np.zeros_like(d), scale, np.zeros_like(scale), q


def _refine_scales(
    scale: Floats, d: Floats, sums: Callable[[Floats], tuple[Floats, Floats]], low: int, high: int
) -> tuple[Floats, Floats]:
    """The best integer for each group near its present one, and then the best scale of the block."""
    best = np.full_like(scale, -np.inf)
    kept = xq_kept = qq_kept = np.zeros_like(scale)
    for step in NEIGHBOURS:
        tried = np.clip(scale + np.float32(step), low, high)
        product = d * tried
        xq, qq = sums(inverse(product))
        gain = product * ((xq + xq) - product * qq)
        better = gain > best
        best, kept = np.where(better, gain, best), np.where(better, tried, kept)
        xq_kept, qq_kept = np.where(better, xq, xq_kept), np.where(better, qq, qq_kept)
    return kept, _total(kept * xq_kept) / _total((kept * kept) * qq_kept)


def _levels(grid: Scales, x: Floats) -> Floats:
    """The level nearest to each x."""
    if grid.is_even:
        return np.rint(np.clip(x, np.float32(grid.levels[0]), np.float32(grid.levels[-1])))
    return np.array(grid.levels, np.float32)[_indices(grid, x)]


def _indices(grid: Scales, x: Floats) -> NDArray[Any]:
    if grid.is_even:
        return _levels(grid, x) - np.float32(grid.levels[0])
    return nearest_index(x, np.array(grid.levels))


# --- a scale and a minimum for each group ------------------------------------------------------------------


def _fit_lines(grid: Lines, x: Floats, weights: Floats, half: _Halves) -> tuple[Floats, ...]:
    is_signed = grid.scale_max == 0
    original, start = x, np.zeros_like(x[0])
    if is_signed:  # with a minimum of any sign, weights are taken from the lowest on
        start = x.min(0)
        x = x - start
        low = np.zeros_like(start)
    else:  # otherwise zero is always in the range
        low = np.minimum(x.min(0), np.float32(0))
    w, wx = _total(weights), _total(weights * x)

    def sums(factor: Floats, m: Floats) -> tuple[Floats, Floats, Floats]:
        """Of weights * q, weights * q**2 and weights * q * x, by groups, when (x + m) * factor is rounded to q."""
        q = _rounded((x + m) * factor, grid.q_max)
        wq = weights * q
        return _total(wq), _total(wq * q), _total(wq * x)

    d, m = _best_lines(grid, x.max(0) - low, -low, w, wx, sums, is_signed)
    if is_signed:
        d, m = half.rounded(d[0]), half.rounded(m[0] - start[0])
        scale = minimum = np.ones_like(w)
    else:
        share = np.float32(1 / grid.scale_max)
        fitted_d, fitted_m = d, m
        d, m = half.rounded(d.max(0) * share), half.rounded(m.max(0) * share)
        scale = _rounded(fitted_d * inverse(d), grid.scale_max)
        minimum = _rounded(fitted_m * inverse(m), grid.scale_max)
        for _ in range(N_REFINEMENTS):
            scale, minimum, refined_d, refined_m = _refine_lines(grid, scale, minimum, d, m, w, wx, sums)
            refined_d, refined_m = half.rounded(refined_d), half.rounded(refined_m)
            better = (refined_d > 0) & (refined_m >= 0)
            d, m = np.where(better, refined_d, d), np.where(better, refined_m, m)
    q = _rounded((original + m * minimum) * inverse(d * scale), grid.q_max)
    return d, m, scale, minimum, q


Sums = Callable[["Floats", "Floats"], "tuple[Floats, Floats, Floats]"]


def _best_lines(
    grid: Lines, spread: Floats, m_of_range: Floats, w: Floats, wx: Floats, sums: Sums, is_signed: bool
) -> tuple[Floats, Floats]:
    """d and m of every group, before they are rounded themselves."""
    inverse_spread = inverse(spread)
    gain, d, m = np.zeros_like(w), np.zeros_like(w), m_of_range

    def keep_better(factor: Floats, m_now: Floats) -> None:
        nonlocal gain, d, m
        wq, wqq, wqx = sums(factor, m_now)
        spans = w * wqq
        determinant = spans - wq * wq
        new_d = (w * wqx - wq * wx) / determinant
        new_m = (wq * wqx - wqq * wx) / determinant
        # Equal q allow any line, and a minimum below zero cannot be stored: the line then goes through zero.
        is_line = determinant > spans * LEAST_SPREAD
        if not is_signed:
            is_line &= new_m >= 0
        new_d = np.where(is_line, new_d, wqx / wqq)
        new_m = np.where(is_line, new_m, np.float32(0))
        new_gain = new_d * wqx - new_m * wx
        better = (new_gain > gain) & (new_d > 0)
        gain, d, m = np.where(better, new_gain, gain), np.where(better, new_d, d), np.where(better, new_m, m)

    for target in grid.targets:
        keep_better(target * inverse_spread, m_of_range)
    for _ in range(N_POLISHES):
        keep_better(inverse(d), m)
    return d, m


def _refine_lines(
    grid: Lines, scale: Floats, minimum: Floats, d: Floats, m: Floats, w: Floats, wx: Floats, sums: Sums
) -> tuple[Floats, Floats, Floats, Floats]:
    """The best integers for each group near its present ones, and then the best d and m of the block."""
    best = np.full_like(scale, np.inf)
    kept = [scale, minimum, *([np.zeros_like(scale)] * 3)]
    for step in NEIGHBOURS:
        tried = np.clip(scale + np.float32(step), 0, grid.scale_max)
        product = d * tried
        factor = inverse(product)

        def keep_better(
            tried_minimum: Floats, tried: Floats = tried, product: Floats = product, factor: Floats = factor
        ) -> Floats:
            nonlocal best
            offset = m * tried_minimum
            wq, wqq, wqx = sums(factor, offset)
            tilt = product * wq - wx
            error = product * (product * wqq - (wqx + wqx)) + offset * (offset * w - (tilt + tilt))
            better = error < best
            best = np.where(better, error, best)
            for i, value in enumerate((tried, tried_minimum, wq, wqq, wqx)):
                kept[i] = np.where(better, value, kept[i])
            return tilt

        tilt = keep_better(minimum)
        keep_better(_rounded(tilt * inverse(m * w), grid.scale_max))  # what suits the q just rounded
    scale, minimum, wq, wqq, wqx = kept
    dd, dm, mm = _total((scale * scale) * wqq), _total((scale * minimum) * wq), _total((minimum * minimum) * w)
    xd, xm = _total(scale * wqx), _total(minimum * wx)
    spans = dd * mm
    determinant = spans - dm * dm
    apart = determinant > spans * LEAST_SPREAD
    refined_d = np.where(apart, (mm * xd - dm * xm) / determinant, np.where(mm == 0, xd / dd, np.float32(0)))
    refined_m = np.where(apart, (dm * xd - dd * xm) / determinant, np.float32(0))
    return scale, minimum, refined_d, refined_m


# --- small words -------------------------------------------------------------------------------------------


class _Halves:
    """Rounding to what float16 can hold, for numbers that were divided by their block's unit."""

    def __init__(self, unit: Floats, inverse_unit: Floats) -> None:
        self.unit, self.inverse_unit = unit, inverse_unit

    def rounded(self, d: Floats) -> Floats:
        return to_half(d * self.unit) * self.inverse_unit


def _power_of_two(peak: Floats) -> tuple[Floats, Floats]:
    """A power of two near each peak, and its inverse: both exact, and normal numbers."""
    bits = np.minimum(peak.view(np.int32) & np.int32(0x7F800000), np.int32(253 << 23))
    bits = np.maximum(bits, np.int32(1 << 23))
    return bits.view(np.float32), (_TOP_BITS - bits).view(np.float32)


def _total(x: Floats) -> Floats:
    """The sum over the first axis, from the first to the last."""
    total = x[0]
    for row in x[1:]:
        total = total + row
    return total


def _extreme(x: Floats) -> Floats:
    """The value of largest magnitude along the first axis, with its sign; of equals the first."""
    return np.take_along_axis(x, np.abs(x).argmax(0)[None], axis=0)[0]


def _rounded(x: Floats, top: int) -> Floats:
    return np.rint(np.clip(x, np.float32(0), np.float32(top)))


def inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is too small for that: a group of zeros, or of what is zero to float16 scales."""
    with np.errstate(all="ignore"):
        reciprocal = 1 / d
    return np.where(np.isfinite(reciprocal), reciprocal, np.float32(0))


def to_half(d: Floats) -> Floats:
    """d as float16 will store it: weights are rounded to what the reader will really multiply with."""
    return d.astype(np.float16).astype(np.float32)


def round_to(x: Floats, low: int, high: int) -> NDArray[np.int8]:
    """The nearest integers from `low` to `high`."""
    return np.clip(np.rint(x), low, high).astype(np.int8)


def nearest_index(x: Floats, table: NDArray[Any]) -> Ints:
    """The index of the value of an ascending `table` nearest to each x."""
    index = np.zeros(x.shape, np.uint8)
    for middle in (table[1:].astype(np.float32) + table[:-1]) / 2:
        index += x > middle
    return index
