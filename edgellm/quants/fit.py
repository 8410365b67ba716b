"""Choosing the scales of a block: which few numbers reproduce its weights with the least squared error.

All functions work on many groups at once: x is float32[..., k], k weights that share one scale. They try a
few ways to round the weights, solve each time for the scale that fits those integers best (least squares),
and keep the best. Groups are first brought to a peak of 1, so that squares neither overflow nor vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.quants.base import Bytes, Floats

N_GUESSES = 21


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


def extreme(x: Floats) -> Floats:
    """float32[..., k] -> float32[..., 1]: the value of largest magnitude, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)


def fit_scale(x: Floats, levels: Callable[[Floats], NDArray[Any]], low: int, stretch: float) -> Floats:
    """float32[..., k] -> float32[..., 1]: the scale d of x ≈ d * levels(x / d).

    `levels` rounds to the values that the format can hold, of which `low` is the lowest. The guesses let the
    extreme weight fall on values from `low - stretch` to `low + stretch`.
    """
    peak = extreme(x)
    x = x * inverse(peak)
    best_gain = np.full_like(peak, -1)
    best = np.zeros_like(peak)
    for target in np.linspace(low - stretch, low + stretch, N_GUESSES, dtype=np.float32):
        q = levels(x * target).astype(np.float32)
        xq, qq = (x * q).sum(-1, keepdims=True), (q * q).sum(-1, keepdims=True)
        gain = xq * xq * inverse(qq)  # how much squared error the best scale for these q removes
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best = np.where(better, xq * inverse(qq), best)
    return best * peak


def fit_affine(x: Floats, q_max: int) -> tuple[Floats, Floats]:
    """float32[..., k] -> two float32[..., 1]: d >= 0 and m >= 0 of x ≈ d * q - m with q from 0 to q_max."""
    k = np.float32(x.shape[-1])
    peak = np.abs(x).max(-1, keepdims=True)
    x = x * inverse(peak)
    low = np.minimum(x.min(-1, keepdims=True), 0)
    spread = x.max(-1, keepdims=True) - low
    sum_x = x.sum(-1, keepdims=True)

    def levels(target: float) -> Floats:
        """The weights rounded to 0 .. q_max, on a scale where their whole range is `target`."""
        return np.clip(np.rint((x - low) * (np.float32(target) * inverse(spread))), 0, q_max)

    best_d, best_low = spread / q_max, low
    best_error = np.square(best_d * levels(q_max) + best_low - x).sum(-1, keepdims=True)
    for target in np.linspace(q_max - 1, q_max + 1, N_GUESSES):
        q = levels(target)
        sum_q, sum_qq = q.sum(-1, keepdims=True), (q * q).sum(-1, keepdims=True)
        sum_xq = (x * q).sum(-1, keepdims=True)
        determinant = inverse(k * sum_qq - sum_q * sum_q)
        d = (k * sum_xq - sum_x * sum_q) * determinant
        offset = (sum_x * sum_qq - sum_q * sum_xq) * determinant
        # An offset above zero cannot be stored, and equal q allow any: the line then goes through zero.
        d = np.where((offset > 0) | (determinant == 0), sum_xq * inverse(sum_qq), d)
        offset = np.minimum(offset, 0)
        error = np.square(d * q + offset - x).sum(-1, keepdims=True)
        better = (error < best_error) & (d > 0)
        best_error = np.where(better, error, best_error)
        best_d, best_low = np.where(better, d, best_d), np.where(better, offset, best_low)
    return best_d * peak, np.abs(best_low) * peak


def nearest_index(x: Floats, table: NDArray[Any]) -> Bytes:
    """The index of the value of an ascending `table` nearest to each x."""
    middles = (table[1:].astype(np.float32) + table[:-1]) / 2
    return np.searchsorted(middles, x).astype(np.uint8)
