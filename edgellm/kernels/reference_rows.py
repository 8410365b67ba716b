"""The NumPy twins of what training adds to the kernels of rows (see `reference.py`): low-rank steps and gradients.

`dy` is the gradient of the loss by what an op made. Sums are made in float64.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.kernels.reference import Floats, Ints, rope


def narrow(x: Floats, weight: Floats, scale: float = 1.0, scales: Floats | None = None) -> Floats:
    """scale * W x for x [n_tokens, n_cols] and W [rank, n_cols]; 0 for a row whose own scale is 0, of [n_tokens]."""
    out = (scale * (x.astype(np.float64) @ weight.T)).astype(np.float32)
    return out if scales is None else np.where(scales[:, None] != 0, out, np.float32(0))


def widen(y: Floats, h: Floats, weight: Floats, scale: float = 1.0, scales: Floats | None = None) -> Floats:
    """y + scale * scales * W^T h for y [n_tokens, n_cols], h [n_tokens, rank], W [rank, n_cols], scales [n_tokens]."""
    factors = scale * (np.ones(len(y)) if scales is None else scales.astype(np.float64))[:, None]
    h = np.where(factors != 0, h, 0).astype(np.float64)  # a row that takes nothing does not look at it
    return (y + factors * (h @ weight)).astype(np.float32)


def add_scaled(y: Floats, x: Floats, scale: float = 1.0, scales: Floats | None = None) -> Floats:
    """y + scale * scales * x for y and x [n_tokens, n_cols], scales [n_tokens]."""
    factors = scale * (np.ones(len(y)) if scales is None else scales.astype(np.float64))[:, None]
    return (y + factors * np.where(factors != 0, x, 0).astype(np.float64)).astype(np.float32)


def rms_norm_backward(x: Floats, weight: Floats, dy: Floats, epsilon: float, n_groups: int = 1) -> Floats:
    """By x of `rms_norm`, all [n_tokens, n_groups * n_cols] with weight [n_cols]."""
    groups = x.reshape(len(x), n_groups, x.shape[1] // n_groups).astype(np.float64)
    size = np.sqrt(np.square(groups).mean(-1, keepdims=True) + epsilon)
    g = dy.reshape(groups.shape) * weight.astype(np.float64)
    dx = (g - groups * (g * groups).mean(-1, keepdims=True) / size**2) / size
    return dx.astype(np.float32).reshape(x.shape)


def rms_norm_weight_sum(sums: Floats, x: Floats, dy: Floats, epsilon: float, n_groups: int = 1) -> Floats:
    """sums [n_cols] + the gradient by the weight of `rms_norm`, added up over the tokens and groups."""
    groups = x.reshape(len(x), n_groups, x.shape[1] // n_groups).astype(np.float64)
    size = np.sqrt(np.square(groups).mean(-1, keepdims=True) + epsilon)
    return (sums + (dy.reshape(groups.shape) * groups / size).sum((0, 1))).astype(np.float32)


def layer_norm_backward(x: Floats, weight: Floats, dy: Floats, epsilon: float, n_groups: int = 1) -> Floats:
    """By x of `layer_norm`, all [n_tokens, n_groups * n_cols] with weight [n_cols] or [n_groups, n_cols]."""
    away, size = _centered(x, n_groups, epsilon)
    g = dy.reshape(away.shape) * weight.astype(np.float64)
    dx = (g - g.mean(-1, keepdims=True) - away * (g * away).mean(-1, keepdims=True) / size**2) / size
    return dx.astype(np.float32).reshape(x.shape)


def layer_norm_sums(
    sums: Floats, bias_sums: Floats, x: Floats, dy: Floats, epsilon: float, n_groups: int = 1
) -> tuple[Floats, Floats]:
    """Both, [n_cols] or [n_groups, n_cols], plus the gradients by weight and bias of `layer_norm`, over all tokens."""
    away, size = _centered(x, n_groups, epsilon)
    gradient = dy.reshape(away.shape).astype(np.float64)
    axes = 0 if sums.ndim == 2 else (0, 1)
    found = (sums + (gradient * away / size).sum(axes), bias_sums + gradient.sum(axes))
    return found[0].astype(np.float32), found[1].astype(np.float32)


def _centered(x: Floats, n_groups: int, epsilon: float) -> tuple[Floats, Floats]:
    groups = x.reshape(len(x), n_groups, x.shape[1] // n_groups).astype(np.float64)
    away = groups - groups.mean(-1, keepdims=True)
    return away, np.sqrt(np.square(away).mean(-1, keepdims=True) + epsilon)


def soft_cap_backward(y: Floats, dy: Floats, cap: float) -> Floats:
    """By x of y = cap * tanh(x / cap)."""
    return (dy * (1 - np.square(y.astype(np.float64) / cap))).astype(np.float32)


def glu_backward(gate: Floats, up: Floats, dy: Floats, activation: str) -> tuple[Floats, Floats]:
    """By gate and by up of `glu`, [n_tokens, n_cols] all."""
    gradient = dy.astype(np.float64)
    if activation == "clamped_swiglu":
        near, factor = np.minimum(gate.astype(np.float64), 7), np.clip(up, -7, 7) + 1.0
        s = 1 / (1 + np.exp(-1.702 * near))
        by_gate = np.where(gate > 7, 0, gradient * factor * (s + 1.702 * near * s * (1 - s)))
        by_up = np.where(np.abs(up) > 7, 0, gradient * near * s)
        return by_gate.astype(np.float32), by_up.astype(np.float32)
    value, slope = _with_slope(gate, activation)
    return (gradient * up * slope).astype(np.float32), (gradient * value).astype(np.float32)


def _silu_exponent(x: Floats) -> tuple[Floats, Floats]:
    return x, np.ones_like(x)


def _gelu_exponent(x: Floats) -> tuple[Floats, Floats]:
    steep = 2 * np.sqrt(2 / np.pi)
    return steep * (x + 0.044715 * x**3), steep * (1 + 3 * 0.044715 * x**2)


_ERF = np.vectorize(math.erf, otypes=[float])
# These activations are x * sigmoid(z): z and its slope.
_EXPONENTS = {"silu": _silu_exponent, "gelu": _gelu_exponent}


def activate(x: Floats, activation: str) -> Floats:
    """relu, its square, silu, tanh, or one of the two forms of gelu, of every number."""
    return _with_slope(x, activation)[0].astype(np.float32)


def activate_backward(x: Floats, dy: Floats, activation: str) -> Floats:
    """By x of `activate`."""
    return (dy * _with_slope(x, activation)[1]).astype(np.float32)


def _with_slope(x: Floats, activation: str) -> tuple[Floats, Floats]:
    x = x.astype(np.float64)
    if activation == "tanh":
        return np.tanh(x), 1 - np.tanh(x) ** 2
    if activation == "linear":
        return x, np.ones_like(x)
    if activation == "relu":
        return np.where(x < 0, 0, x), (x > 0).astype(np.float64)
    if activation == "relu_squared":
        positive = np.where(x < 0, 0, x)
        return positive**2, 2 * positive
    if activation == "gelu_erf":
        p = 0.5 * (1 + _ERF(x / np.sqrt(2)))
        return x * p, p + x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    z, slope_of_z = _EXPONENTS.get(activation, _silu_exponent)(x)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-z))
    if activation == "sigmoid":
        return s, s * (1 - s)
    return x * s, s + x * s * (1 - s) * slope_of_z


def rope_inverse(x: Floats, angles: Floats, interleaved: bool) -> Floats:
    """`rope` turned back, which is also its gradient."""
    return rope(x, -angles, interleaved)


def cross_entropy(logits: Floats, targets: Ints, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Negative log-likelihoods [n_tokens], and weights times their gradient by the logits [n_tokens, n_vocab].

    Both are 0 where the target is -1, and NaN where one of the logits is NaN or infinite.
    """
    x = np.where(np.isfinite(logits).all(-1, keepdims=True), logits, np.nan).astype(np.float64)
    shifted = x - x.max(-1, keepdims=True, initial=-np.inf)
    total = np.exp(shifted).sum(-1, keepdims=True)
    learnt, rows = targets >= 0, np.arange(len(x))
    nll = np.log(total[:, 0]) - shifted[rows, targets]
    gradient = np.exp(shifted) / total
    gradient[rows, targets] -= 1
    if weights is not None:
        gradient *= weights[:, None]
    nll, gradient = np.where(learnt, nll, 0), np.where(learnt[:, None], gradient, 0)
    return nll.astype(np.float32), gradient.astype(np.float32)


def embed_backward(sums: Floats, token_ids: Ints, dy: Floats, scale: float = 1.0) -> Floats:
    """sums [n_vocab, n_cols] + scale * dy [n_tokens, n_cols], each row added to that of its token id."""
    total = sums.astype(np.float64)
    np.add.at(total, token_ids, scale * dy.astype(np.float64))
    return total.astype(np.float32)


def replace_rows(x: Floats, table: Floats | None, places: Floats) -> Floats:
    """x [n_tokens, n_cols], with row i - 1 of the table (None: of zeros) where the place, of [n_tokens], is i > 0."""
    index = places.astype(int)
    other = np.zeros_like(x) if table is None else table[np.maximum(index - 1, 0)]
    return np.where(index[:, None] > 0, other, x)


def replaced_rows_sum(sums: Floats, dy: Floats, places: Floats) -> Floats:
    """sums [n_rows, n_cols] + dy [n_tokens, n_cols], each row with a place i > 0 added to row i - 1."""
    total, index = sums.astype(np.float64), places.astype(int)
    np.add.at(total, index[index > 0] - 1, dy[index > 0])
    return total.astype(np.float32)


def column_sums(sums: Floats, x: Floats) -> Floats:
    """sums [n_cols] + x [n_tokens, n_cols], added up over the tokens."""
    return (sums + x.sum(0, dtype=np.float64)).astype(np.float32)


def column_products(sums: Floats, a: Floats, b: Floats) -> Floats:
    """sums [n_cols] + a * b, [n_tokens, n_cols] both, added up over the tokens."""
    return (sums + (a.astype(np.float64) * b).sum(0)).astype(np.float32)


def multiply_columns(x: Floats, weight: Floats) -> Floats:
    """float32 [n_tokens, n_cols] and [n_cols]."""
    return x * weight


def dropout(x: Floats, p: float, seed: int) -> Floats:
    """x [n_tokens, n_cols] / (1 - p), or 0 where a random word of 32 bits, read as signed, is below its share p."""
    n_tokens, n_cols = x.shape
    keys = split_mix_64(seed, n_tokens)
    first, second = (part.astype(np.uint32)[:, None] for part in (keys & np.uint64(2**32 - 1), keys >> np.uint64(32)))
    words = _low_bias_32(_low_bias_32(np.arange(n_cols, dtype=np.uint32) ^ first) ^ second)
    is_dropped = words.view(np.int32) < int(p * 2**32) - 2**31
    return np.where(is_dropped, np.float32(0), x * np.float32(1 / (1 - p)))


def split_mix_64(seed: int, n: int) -> Ints:
    """The first n numbers of the generator SplitMix64 with that seed, uint64."""
    with np.errstate(over="ignore"):
        state = np.uint64(seed % 2**64) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return _mixed(state, (30, 27, 31), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _low_bias_32(x: Ints) -> Ints:
    return _mixed(x, (16, 15, 16), (0x7FEB352D, 0x846CA68B))


def _mixed(x: Ints, shifts: tuple[int, int, int], factors: tuple[int, int]) -> Ints:
    for shift, factor in zip(shifts[:2], factors, strict=True):
        x = (x ^ (x >> x.dtype.type(shift))) * x.dtype.type(factor)
    return x ^ (x >> x.dtype.type(shifts[2]))
