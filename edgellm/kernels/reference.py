"""What every kernel computes, in NumPy: the twins that tests hold the compiled kernels to.

Each function takes plain arrays where a kernel takes addresses, and says the same in a few lines. Sums are made
in float64 unless their order is part of the promise, so a twin is closer to the truth than its kernel and tests
allow for the kernel's float32 roundings. Shapes: tokens come first, a head's dimensions last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.group_sums import GroupSums
from edgellm.kernels.records import KV_BLOCK, LEAST_QUANTIZED, MAXIMA_GROUP, PLANE_BITS
from edgellm.quants import BlockFormat

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

GROUP = 32  # activations that share a scale


# --- rows of activations -----------------------------------------------------------------------------------


def embed(token_ids: Ints, weights: NDArray[np.uint8], fmt: BlockFormat, scale: float = 1.0) -> Floats:
    """Rows of weights, uint8 [n_vocab, row_bytes], for ids [n_tokens] -> float32 [n_tokens, n_cols]."""
    return fmt.dequantize(weights[token_ids]) * np.float32(scale)


def select_rows(x: Floats, rows: Ints) -> Floats:
    """float32 [n_tokens, n_cols] -> its rows [n_rows, n_cols], in the order asked for."""
    return x[rows]


def add(a: Floats, b: Floats) -> Floats:
    """float32 [n_tokens, n_cols] both."""
    return a + b


def add_bias(x: Floats, bias: Floats) -> Floats:
    """float32 [n_tokens, n_cols] and [n_cols]."""
    return x + bias


def choose(x: Floats, other: Floats, scales: Floats) -> Floats:
    """The rows of `other` where scales [n_tokens] are not 0, else those of x: float32 [n_tokens, n_cols] both."""
    return np.where(scales[:, None] != 0, other, x)


def resize_heads(x: Floats, n_heads: int, head_dim: int) -> Floats:
    """Every head of x [n_tokens, n_heads * old] cut off at head_dim, or filled up to it with zeros."""
    heads = x.reshape(len(x), n_heads, x.shape[1] // n_heads)
    resized = np.zeros((len(x), n_heads, head_dim), np.float32)
    n_kept = min(head_dim, heads.shape[2])
    resized[..., :n_kept] = heads[..., :n_kept]
    return resized.reshape(len(x), n_heads * head_dim)


def sum_squares(x: Floats, sums: Floats) -> Floats:
    """sums + the squares of x [n_tokens, n_cols], added up over the tokens: float64 [n_cols]."""
    return sums + np.square(x.astype(np.float64)).sum(0)


def maxima(x: Floats) -> Floats:
    """The largest of every MAXIMA_GROUP neighbours, float32 [..., n] -> [..., n_groups].

    NaN where one of the neighbours is NaN or infinite.
    """
    starts = np.arange(0, x.shape[-1], MAXIMA_GROUP)
    finite = np.where(np.isfinite(x), x, np.float32(np.nan))
    return np.maximum.reduceat(finite, starts, axis=-1)


def rms_norm(x: Floats, weight: Floats, epsilon: float, n_groups: int = 1) -> Floats:
    """x / sqrt(mean(x**2) + epsilon) * weight, for x [n_tokens, n_groups * n_cols] and weight [n_cols].

    Every group, a head say, is normalized by itself; all share the weight.
    """
    groups = x.reshape(len(x), n_groups, x.shape[1] // n_groups).astype(np.float64)
    mean_square = np.square(groups).mean(-1, keepdims=True)
    return (groups / np.sqrt(mean_square + epsilon) * weight).astype(np.float32).reshape(x.shape)


def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: float, n_groups: int = 1) -> Floats:
    """(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, for x [n_tokens, n_groups * n_cols].

    weight, bias:  [n_cols], which all groups share, or [n_groups, n_cols].
    """
    groups = x.reshape(len(x), n_groups, x.shape[1] // n_groups).astype(np.float64)
    away = groups - groups.mean(-1, keepdims=True)
    variance = np.square(away).mean(-1, keepdims=True)
    return (away / np.sqrt(variance + epsilon) * weight + bias).astype(np.float32).reshape(x.shape)


def soft_cap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)"""
    return (cap * np.tanh(x.astype(np.float64) / cap)).astype(np.float32)


def columns(x: Floats, first: int, n_cols: int, out_first: int = 0, out_cols: int = 0) -> Floats:
    """Columns of x [n_tokens, ...] as those from out_first on of float32 [n_tokens, out_cols or n_cols], else 0."""
    out = np.zeros((len(x), out_cols or n_cols), np.float32)
    out[:, out_first : out_first + n_cols] = x[:, first : first + n_cols]
    return out


def glu(gate: Floats, up: Floats, activation: str) -> Floats:
    """activation(gate) * up, for [n_tokens, n_cols] both."""
    if activation == "clamped_swiglu":
        gate, up = np.minimum(gate.astype(np.float64), 7), np.clip(up, -7, 7)
        return (gate * _sigmoid(1.702 * gate) * (up + 1)).astype(np.float32)
    return (_ACTIVATIONS[activation](gate.astype(np.float64)) * up).astype(np.float32)


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)


def _gelu(x: Floats) -> Floats:
    """The tanh form: x/2 (1 + tanh(z)), which is x * sigmoid(2z)."""
    return x * _sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


_ERF = np.vectorize(math.erf, otypes=[float])

_ACTIVATIONS = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_erf": lambda x: x / 2 * (1 + _ERF(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": lambda x: _sigmoid(x),
    "linear": lambda x: x,
}


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def rope(x: Floats, angles: Floats, interleaved: bool) -> Floats:
    """Turn pairs of dimensions: x [n_tokens, n_heads, head_dim] by angles [n_tokens, n_rot / 2], in radians.

    A pair is (2i, 2i + 1) when interleaved, otherwise (i, i + n_rot / 2); dimensions from n_rot on stay.
    """
    half = angles.shape[-1]
    first = np.arange(half) * (2 if interleaved else 1)
    second = first + (1 if interleaved else half)
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out = x.copy()
    out[..., first] = a * cosine - b * sine
    out[..., second] = a * sine + b * cosine
    return out


# --- linear layers -----------------------------------------------------------------------------------------


class Quantized(NamedTuple):
    """Activations as int8: x is about q * d, group by group (see `records.QUANTIZED`).

    In two planes, the second q of a token stands behind the first, and x is about (256 * q1 + q2) * d.
    """

    q: NDArray[np.int8]  # [n_tokens, n_planes * n_cols]
    d: Floats  # float32 [n_tokens, n_cols / 32]
    halves: NDArray[np.int32]  # [n_tokens, n_cols / 16]: the sum of each half of a group

    def sums(self, kind: GroupSums) -> Floats | NDArray[np.int32]:
        """[n_tokens, n_cols / scale_group]: what weights of some formats need of each group."""
        per_sum, (n_tokens, n_halves) = kind.scale_group // 16, self.halves.shape
        sums = self.halves.reshape(n_tokens, n_halves // per_sum, per_sum).sum(-1, dtype=np.int32)
        if kind.zero:
            return -kind.zero * sums
        return sums.astype(np.float32) * np.repeat(self.d, 2 // per_sum, axis=1)

    def dequantize(self) -> NDArray[np.float64]:
        """float64 [n_tokens, n_cols]: what the linear kernels take the activations to be."""
        n_cols = self.d.shape[1] * GROUP
        q = _joined(np.split(self.q, self.q.shape[1] // n_cols, axis=1)).astype(np.float64)
        return q * np.repeat(self.d.astype(np.float64), GROUP, axis=-1)


def _joined(planes: list[Any]) -> NDArray[np.int64]:
    """Planes of int8 as the integers that they stand for."""
    total = planes[0].astype(np.int64)
    for plane in planes[1:]:
        total = (total << PLANE_BITS) + plane
    return total


def quantize(x: Floats, n_planes: int = 1) -> Quantized:
    """float32 [n_tokens, n_cols] -> int8 in groups of 32, each with the scale that its largest magnitude needs.

    What rounding leaves over goes into a second plane, in steps of a 256th. In float32 throughout, as the kernel does
    it: both give the same bits. A group that holds NaN or infinity has a scale that is not finite either, and so spoils
    all that is computed from it.
    """
    groups = x.astype(np.float32).reshape(len(x), x.shape[1] // GROUP, GROUP)
    largest = np.abs(groups).max(-1)
    with np.errstate(all="ignore"):
        d = largest * np.float32(1 / 127)
        inverse = np.where(largest > LEAST_QUANTIZED, np.float32(127) / largest, np.float32(0))[..., None]
        planes = [_as_bytes(np.rint(groups * inverse))]
        if n_planes == 2:
            product = planes[0].astype(np.float64) * d[..., None].astype(np.float64)
            rest = (groups.astype(np.float64) - product).astype(np.float32)  # exact, then rounded once
            finer = rest * inverse * np.float32(1 << PLANE_BITS)
            planes.append(_as_bytes(np.rint(np.clip(finer, -127, 127))))
            d = d * np.float32(2.0**-PLANE_BITS)
        sums = _joined(planes).reshape(*d.shape, 2, GROUP // 2).sum(-1)
    q = np.concatenate([plane.reshape(x.shape) for plane in planes], axis=1)
    return Quantized(q, d, sums.reshape(len(x), x.shape[1] // 16).astype(np.int32))


def _as_bytes(rounded: Floats) -> NDArray[np.int8]:
    return np.where(np.isfinite(rounded), rounded, 0).astype(np.int8)


def linear(weights: NDArray[np.uint8], fmt: BlockFormat, x: Quantized) -> Floats:
    """W x for weights uint8 [n_rows, row_bytes] -> float32 [n_tokens, n_rows].

    Kernels get the sum over a group exactly, from integers, and then add groups in float32, first to last.
    """
    with np.errstate(all="ignore"):
        return (x.dequantize() @ fmt.dequantize(weights).astype(np.float64).T).astype(np.float32)


def linear_f32(weights: NDArray[np.uint8], fmt: BlockFormat, x: Floats) -> Floats:
    """W x for inputs float32 [n_tokens, n_cols] that nobody has rounded -> float32 [n_tokens, n_rows].

    Column after column, each by one fused multiply-add, as the kernels do it: both give the same bits.
    """
    w = fmt.dequantize(weights)
    total: Floats = np.zeros((len(x), len(w)), np.float32)
    for column in range(w.shape[1]):
        total = fused_multiply_add(x[:, column, None], w[:, column], total)
    return total


def fused_multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c in float32, rounded once.

    In float64 the product is exact, and the sum is rounded to odd, so that rounding it again does no harm (Boldo and
    Melquiond, 2008): of the two numbers around a sum that is not exact, the one whose last bit is 1.
    """
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b
        total = product + c
        part = total - product
        error = (product - (total - part)) + (c - part)  # exactly (Knuth's two-sum)
        is_even = total.view(np.int64) % 2 == 0
        beside = np.nextafter(total, np.copysign(np.inf, error))
        return np.where(is_even & (error != 0), beside, total).astype(np.float32)


# --- attention ---------------------------------------------------------------------------------------------


def new_cache(
    n_blocks: int, n_kv_heads: int, key_dim: int, dtype: Any = np.float16, value_dim: int | None = None
) -> tuple[Floats, ...]:
    """The keys and values of a layer's cache in float16 or float32, as two views of one zeroed block of memory.

    keys:    [n_blocks, n_kv_heads, key_dim, KV_BLOCK]
    values:  [n_blocks, n_kv_heads, KV_BLOCK, value_dim], behind the keys in every block; as wide as keys by default
    """
    value_dim = value_dim or key_dim
    n_keys = n_kv_heads * key_dim * KV_BLOCK
    cache = np.zeros((n_blocks, n_keys + n_kv_heads * value_dim * KV_BLOCK), dtype)
    return (
        cache[:, :n_keys].reshape(n_blocks, n_kv_heads, key_dim, KV_BLOCK),
        cache[:, n_keys:].reshape(n_blocks, n_kv_heads, KV_BLOCK, value_dim),
    )


def kv_append(keys: Floats, values: Floats, slots: Ints, k: Floats, v: Floats) -> None:
    """Put k and v [n_tokens, n_kv_heads, ...] into a cache; a slot is block * KV_BLOCK + place in the block."""
    block, place = slots // KV_BLOCK, slots % KV_BLOCK
    with np.errstate(over="ignore"):
        keys[block, :, :, place] = k
        values[block, :, place] = v


class Partial(NamedTuple):
    """Attention to some positions: what is needed to put it together with attention to others."""

    m: Floats  # [n_tokens, n_heads]: the largest score, -inf where nothing was seen
    l: Floats  # [n_tokens, n_heads]: the sum of exp(score - m)
    sums: Floats  # [n_tokens, n_heads, value_dim]: the sum of exp(score - m) * value


def attention(
    q: Floats,
    keys: Floats,
    values: Floats,
    block_table: Ints,
    position: int,
    scale: float,
    window: int | None = None,
    kv_begin: int = 0,
    kv_end: int | None = None,
    soft_cap: float | None = None,
    slopes: Floats | None = None,
) -> Partial:
    """Consecutive tokens q [n_tokens, n_heads, key_dim], the first at `position`, of one sequence.

    Each looks at positions kv_begin to kv_end - 1 of the sequence as far as they are not after its own and, with
    a window, fewer than `window` before it. Position p lies in block block_table[p // KV_BLOCK] of the cache.
    Query heads come in equal groups that share a key-value head. Scores s become soft_cap * tanh(s / soft_cap), and
    lose slopes [n_heads] for each position of distance.
    """
    n_tokens, n_heads, _ = q.shape
    own = position + np.arange(n_tokens)
    seen = np.arange(kv_begin, position + n_tokens if kv_end is None else kv_end)
    block, place = block_table[seen // KV_BLOCK], seen % KV_BLOCK
    group = n_heads // keys.shape[1]
    k = np.repeat(keys[block, :, :, place], group, axis=1).astype(np.float64)
    v = np.repeat(values[block, :, place], group, axis=1).astype(np.float64)
    visible = seen <= own[:, None]
    if window is not None:
        visible &= seen > own[:, None] - window

    scores = np.einsum("thd,shd->ths", q.astype(np.float64) * scale, k)
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    if slopes is not None:
        scores -= slopes[:, None].astype(np.float64) * (own[:, None] - seen)[:, None]
    scores = np.where(visible[:, None], scores, -np.inf)
    m = scores.max(-1, initial=-np.inf)
    weights = np.where(visible[:, None], np.exp(scores - np.where(np.isinf(m), 0, m)[..., None]), 0)
    return Partial(m, weights.sum(-1), np.einsum("ths,shd->thd", weights, v))


def attention_merge(partials: Sequence[Partial], sinks: Floats | None = None) -> Floats:
    """The whole result of attention from its parts: float32 [n_tokens, n_heads, value_dim].

    sinks:  [n_heads], a score for each head that takes its share and gives nothing.
    """
    if sinks is not None:
        m, sums = np.broadcast_to(sinks, partials[0].m.shape), np.zeros_like(partials[0].sums)
        partials = [*partials, Partial(m, np.ones_like(m, np.float64), sums)]
    m = np.max([part.m for part in partials], axis=0)
    weights = [np.exp(part.m - m) for part in partials]
    sums = sum(part.sums * w[..., None] for part, w in zip(partials, weights, strict=True))
    total = sum(part.l * w for part, w in zip(partials, weights, strict=True))
    return (sums / np.asarray(total)[..., None]).astype(np.float32)
