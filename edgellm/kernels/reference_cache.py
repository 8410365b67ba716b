"""Caches of integers in NumPy: the twins of `kv_types.IntegerKV`, `ops/kv_append.py` and `ops/rotate.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.kv_types import SCALE_GROUP, SPREADS, IntegerKV
from edgellm.kernels.records import KV_BLOCK

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def rotate(x: Floats) -> Floats:
    """float32 [..., n], each block of the largest power of two that divides n turned by a Hadamard matrix.

    Sums and differences of ever larger steps, in float32 as the kernel makes them: both give the same bits.
    """
    n = x.shape[-1]
    size, step, result = n & -n, 1, x.astype(np.float32)
    while step < size:
        pairs = result.reshape(*x.shape[:-1], n // (2 * step), 2, step)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        result = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        step *= 2
        if step == 16:  # here the kernel changes from lanes to registers
            result = result * np.float32(0.5 ** (np.log2(size) / 2))
    return result


def round_queries(q: Floats, kind: IntegerKV) -> Floats:
    """Queries [..., key_dim] as they meet the keys of such a cache: with 15 bits and a sign, turned as it is."""
    turned = rotate(q) if kind.is_rotated else q
    step = np.abs(turned).max(-1, keepdims=True).astype(np.float64) / 32767
    rounded = (np.rint(turned / np.where(step > 0, step, 1)) * step).astype(np.float32)
    return rotate(rounded) if kind.is_rotated else rounded


class IntegerCache:
    """A layer's cache of integers, zeroed: number = scale * q, in groups of SCALE_GROUP dimensions.

    memory:                    uint8 [n_blocks, bytes of a block], what kernels read and write.
    keys, values:              uint8 views of it, unit by unit, see `kv_types`.
    key_scales, value_scales:  float16 [n_blocks, n_kv_heads, groups, KV_BLOCK].
    """

    def __init__(self, kind: IntegerKV, n_blocks: int, n_kv_heads: int, head_dim: int) -> None:
        self.kind, self.n_kv_heads, self.head_dim = kind, n_kv_heads, head_dim
        n_bytes = KV_BLOCK * head_dim * kind.number_bits // 8
        self.memory = np.zeros((n_blocks, kind.block_bytes(n_kv_heads, head_dim, head_dim)), np.uint8)
        heads = self.memory.reshape(n_blocks, 2, n_kv_heads, -1)
        numbers, scales = heads[..., :n_bytes], heads[..., n_bytes:].view(np.float16)
        scales = scales.reshape(n_blocks, 2, n_kv_heads, kind.n_groups(head_dim), KV_BLOCK)
        n_units = head_dim // kind.n_parts
        self.keys = numbers[:, 0].reshape(n_blocks, n_kv_heads, n_units // 2, KV_BLOCK, 2)
        self.values = numbers[:, 1].reshape(n_blocks, n_kv_heads, KV_BLOCK // 2, n_units, 2)
        self.key_scales, self.value_scales = scales[:, 0], scales[:, 1]

    def append(self, slots: Ints, k: Floats, v: Floats) -> None:
        """Put k and v, float32 [n_tokens, n_kv_heads, head_dim], into the slots, as the kernel does to the bit."""
        block, place = slots // KV_BLOCK, slots % KV_BLOCK
        for x, is_key in ((k, True), (v, False)):
            turned = rotate(x) if self.kind.is_rotated else x
            groups = np.split(turned, range(SCALE_GROUP, self.head_dim, SCALE_GROUP), axis=-1)
            for index, (q, scale) in enumerate(map(_ENCODE[self.kind.name], groups)):
                (self.key_scales if is_key else self.value_scales)[block, :, index, place] = scale
                n_units = q.shape[-1] // self.kind.n_parts
                if is_key:
                    first = index * SCALE_GROUP // self.kind.n_parts // 2
                    units = slice(first, first + n_units // 2)
                    self.keys[block, :, units, place] = self._key_units(q)
                else:
                    first = index * SCALE_GROUP // self.kind.n_parts
                    self.values[block, :, place // 2, first : first + n_units, place % 2] = self._value_bytes(q)

    def _key_units(self, q: Ints) -> NDArray[np.uint8]:
        if self.kind.n_parts == 1:
            return q.astype(np.uint8).reshape(*q.shape[:-1], -1, 2)
        fours = (q + 8).reshape(*q.shape[:-1], -1, 2, 2)
        return (fours[..., 0, :] | fours[..., 1, :] << 4).astype(np.uint8)

    def _value_bytes(self, q: Ints) -> NDArray[np.uint8]:
        if self.kind.n_parts == 1:
            return q.astype(np.uint8)
        low, high = np.split(q + 8, 2, axis=-1)
        return (low | high << 4).astype(np.uint8)

    def dequantize(self) -> tuple[Floats, Floats]:
        """Keys and values as they were given, float32, in the shapes that `reference.attention` takes."""
        n_blocks, dim = len(self.memory), self.head_dim
        keys, values = self.keys.astype(np.int64), self.values.astype(np.int64)
        if self.kind.n_parts == 1:
            keys, values = _signed(keys), _signed(values)
            keys = keys.swapaxes(3, 4).reshape(n_blocks, self.n_kv_heads, dim, KV_BLOCK)
            values = values.swapaxes(3, 4).reshape(n_blocks, self.n_kv_heads, KV_BLOCK, dim)
        else:
            keys = np.stack([keys & 15, keys >> 4], axis=3) - 8  # [..., units, part, KV_BLOCK, 2]
            keys = np.moveaxis(keys, 5, 4).reshape(n_blocks, self.n_kv_heads, dim, KV_BLOCK)
            values = values.swapaxes(3, 4).reshape(n_blocks, self.n_kv_heads, KV_BLOCK, -1, SCALE_GROUP // 2)
            values = np.stack([values & 15, values >> 4], axis=4) - 8
            values = values.reshape(n_blocks, self.n_kv_heads, KV_BLOCK, dim)
        key_scales = np.repeat(self.key_scales.astype(np.float32), SCALE_GROUP, axis=2)[:, :, :dim]
        value_scales = np.repeat(self.value_scales.astype(np.float32), SCALE_GROUP, axis=2)[:, :, :dim]
        k = keys.astype(np.float32) * key_scales
        v = values.astype(np.float32) * value_scales.swapaxes(2, 3)
        return (rotate(k.swapaxes(2, 3)).swapaxes(2, 3), rotate(v)) if self.kind.is_rotated else (k, v)


def _signed(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes as they are, from 0 to 255, as the signed ones that they stand for."""
    return numbers.astype(np.uint8).view(np.int8).astype(np.int64)


def _to_bytes(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """A group [..., 32 or fewer] as q8_0: its scale is the largest magnitude / 127, rounded to float16."""
    with np.errstate(all="ignore"):
        scale = (np.abs(x).max(-1) / np.float32(127)).astype(np.float16)
        return _rounded(x, scale.astype(np.float32), -127, 127), scale


def _to_nibbles(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """A group [..., 32] as q4_0: of some scales the one that keeps most, and then the best one for its q."""
    with np.errstate(all="ignore"):
        largest = np.abs(x).max(-1)
        first = np.where(np.fmax.reduce(x, -1) > np.fmax.reduce(-x, -1), -largest, largest)
        best, scale, gain = np.zeros(x.shape, np.int64), largest - largest, np.zeros_like(largest)
        for spread in SPREADS:
            q = _rounded(x, first * np.float32(spread), -8, 7)
            floats = q.astype(np.float32)
            products, squares = _folded(floats * x), _folded(floats * floats)
            found = products / np.maximum(squares, np.float32(1))
            own_gain = products * found
            is_better = ~(gain > own_gain)
            best = np.where(is_better[..., None], q, best)
            scale, gain = np.where(is_better, found, scale), np.where(is_better, own_gain, gain)
        return best, scale.astype(np.float16)


def _rounded(x: Floats, scale: Floats, least: int, most: int) -> NDArray[np.int64]:
    inverse = np.where(np.abs(scale) > 0, np.float32(1) / scale, np.float32(0))[..., None]
    limited = np.clip(x * inverse, least, most)
    return np.rint(np.where(np.isnan(limited), least, limited)).astype(np.int64)


def _folded(x: Floats) -> Floats:
    """Sums over the last axis by halves, first of the two halves of a group."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


_ENCODE = {"q8_0": _to_bytes, "q4_0": _to_nibbles}
