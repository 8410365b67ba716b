"""Caches of all types in NumPy: the twins of `kv_types`, `ops/kv_append.py` and `ops/rotate.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.kv_types import BOUNDS, REACHES, SCALE_GROUP, CacheType, ChannelKeys, IntegerKV, KVType
from edgellm.kernels.records import KV_BLOCK
from edgellm.quants.iq4_nl import LEVELS

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


def round_queries(q: Floats, kind: KVType) -> Floats:
    """Queries [..., key_dim] as they meet keys of a type: integers with 15 bits and a sign, turned as keys are."""
    if not isinstance(kind, IntegerKV):
        return q
    turned = rotate(q) if kind.is_rotated else q
    step = np.abs(turned).max(-1, keepdims=True).astype(np.float64) / 32767
    rounded = (np.rint(turned / np.where(step > 0, step, 1)) * step).astype(np.float32)
    return rotate(rounded) if kind.is_rotated else rounded


class PagedCache:
    """A layer's cache of any type, zeroed.

    memory:        uint8 [n_blocks, bytes of a block], what kernels read and write.
    keys, values:  views of it.
    recent:        the same blocks as they are until they are full, where that is otherwise.
    """

    def __init__(self, kind: CacheType, n_blocks: int, n_kv_heads: int, key_dim: int, value_dim: int) -> None:
        self.kind, self.n_kv_heads, self.key_dim, self.value_dim = kind, n_kv_heads, key_dim, value_dim
        self.memory = np.zeros((n_blocks, kind.block_bytes(n_kv_heads, key_dim, value_dim)), np.uint8)
        n_key_bytes = n_kv_heads * kind.keys.head_bytes(key_dim)
        self.keys = self._half(kind.keys, key_dim, self.memory[:, :n_key_bytes], is_key=True)
        self.values = self._half(kind.values, value_dim, self.memory[:, n_key_bytes:], is_key=False)
        self.recent = PagedCache(kind.recent, n_blocks, n_kv_heads, key_dim, value_dim) if kind.recent else None

    def spoil(self) -> None:
        """Fill it with what nobody must read."""
        for half in (self.keys, self.values):
            half.spoil()
        if self.recent is not None:
            self.recent.spoil()

    def _half(
        self, kind: KVType, head_dim: int, memory: NDArray[np.uint8], *, is_key: bool
    ) -> _Floats | _Integers | _Channels:
        heads = memory.reshape(len(memory), self.n_kv_heads, -1)
        if isinstance(kind, ChannelKeys):
            return _Channels(kind, head_dim, heads)
        if isinstance(kind, IntegerKV):
            return _Integers(kind, head_dim, heads, is_key)
        return _Floats(kind, head_dim, heads, is_key)

    def append(self, slots: Ints, k: Floats, v: Floats) -> None:
        """Put k and v, float32 [n_tokens, n_kv_heads, head_dim], into the slots, as the kernel does to the bit."""
        block, place = slots // KV_BLOCK, slots % KV_BLOCK
        for half, x in ((self.keys, k), (self.values, v)):
            if not isinstance(half, _Channels):
                half.put(block, place, rotate(x) if half.kind.is_rotated else x)
        if self.recent is not None:
            self.recent.append(slots, k, v)
            assert isinstance(self.keys, _Channels)
            for full in block[place == KV_BLOCK - 1]:
                self.keys.put_block(full, self.recent.keys.floats()[full])

    def dequantize(self, own: int | None = None) -> tuple[Floats, Floats]:
        """Keys and values as they were given, float32, in the shapes that `reference.attention` takes.

        own:  the block of the token that looks at them.
        """
        keys, values = self._turned_back(self.keys.floats(), self.values.floats())
        if self.recent is not None and own is not None:
            for all_of, recent in zip((keys, values), self.recent.dequantize(), strict=True):
                all_of[own] = recent[own]
        return keys, values

    def _turned_back(self, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        if self.kind.keys.is_rotated:
            keys = rotate(keys.swapaxes(2, 3)).swapaxes(2, 3)
        return keys, rotate(values) if self.kind.values.is_rotated else values


class _Floats:
    """Keys [n_blocks, n_kv_heads, head_dim, KV_BLOCK], or values [n_blocks, n_kv_heads, KV_BLOCK, head_dim]."""

    def __init__(self, kind: KVType, head_dim: int, memory: NDArray[np.uint8], is_key: bool) -> None:
        self.kind, self.is_key = kind, is_key
        shape = (head_dim, KV_BLOCK) if is_key else (KV_BLOCK, head_dim)
        self.numbers = memory.view(f"<f{kind.number_bits // 8}").reshape(*memory.shape[:2], *shape)

    def spoil(self) -> None:
        """Fill it with what nobody must read."""
        self.numbers[...] = np.nan

    def put(self, block: Ints, place: Ints, x: Floats) -> None:
        with np.errstate(over="ignore"):
            if self.is_key:
                self.numbers[block, :, :, place] = x
            else:
                self.numbers[block, :, place] = x

    def floats(self) -> Floats:
        return self.numbers.astype(np.float32)


class _Channels:
    """Keys of full blocks: number = minimum + scale * q, both of a channel; but for the first key.

    numbers:  uint8, unit by unit, see `kv_types`. scales, minima, firsts: float16 [n_blocks, n_kv_heads, head_dim].
    """

    def __init__(self, kind: ChannelKeys, head_dim: int, memory: NDArray[np.uint8]) -> None:
        self.kind, self.head_dim = kind, head_dim
        n_bytes, outer = kind.channels_at(head_dim), memory.shape[:2]
        self.numbers = memory[..., :n_bytes].reshape(*outer, head_dim // 4, KV_BLOCK, 2)
        channels = memory[..., n_bytes:].view(np.float16).reshape(*outer, 3, head_dim)
        self.scales, self.minima, self.firsts = (channels[:, :, index] for index in range(3))

    def spoil(self) -> None:
        self.numbers[...] = 99
        for numbers in (self.scales, self.minima, self.firsts):
            numbers[...] = np.nan

    def put_block(self, block: int, keys: Floats) -> None:
        """Keys, float32 [n_kv_heads, head_dim, KV_BLOCK], that were float16."""
        others = keys[..., 1:]
        with np.errstate(all="ignore"):
            minimum = others.min(-1).astype(np.float16)
            reach = others.max(-1) - minimum.astype(np.float32) + (others - others).sum(-1)
            scale = (reach / np.float32(15)).astype(np.float16)
            steps = (others - minimum.astype(np.float32)[..., None]) * _inverse(scale.astype(np.float32))
            q = np.rint(np.clip(steps, 0, 15)).astype(np.uint8)
        fours = np.concatenate([q[..., :1], q], -1).reshape(*q.shape[:-2], -1, 2, 2, KV_BLOCK)
        self.numbers[block] = np.moveaxis(fours[..., 0, :, :] | fours[..., 1, :, :] << 4, -2, -1)
        self.scales[block], self.minima[block], self.firsts[block] = scale, minimum, keys[..., 0]

    def floats(self) -> Floats:
        fours = np.stack([self.numbers & 15, self.numbers >> 4], axis=3)  # [..., units, part, KV_BLOCK, 2]
        q = np.moveaxis(fours, 5, 4).reshape(*self.numbers.shape[:2], self.head_dim, KV_BLOCK).astype(np.float32)
        keys = q * self.scales.astype(np.float32)[..., None] + self.minima.astype(np.float32)[..., None]
        keys[..., 0] = self.firsts
        return keys


class _Integers:
    """number = scale * q, in groups of SCALE_GROUP dimensions.

    numbers:  uint8, unit by unit, see `kv_types`. scales: float16 [n_blocks, n_kv_heads, groups, KV_BLOCK].
    """

    def __init__(self, kind: IntegerKV, head_dim: int, memory: NDArray[np.uint8], is_key: bool) -> None:
        self.kind, self.head_dim, self.is_key = kind, head_dim, is_key
        n_bytes, n_units = KV_BLOCK * head_dim * kind.number_bits // 8, head_dim // kind.n_parts
        shape = (n_units // 2, KV_BLOCK, 2) if is_key else (KV_BLOCK // 2, n_units, 2)
        self.numbers = memory[..., :n_bytes].reshape(*memory.shape[:2], *shape)
        scales = memory[..., n_bytes:].view(np.float16)
        self.scales = scales.reshape(*memory.shape[:2], kind.n_groups(head_dim), KV_BLOCK)

    def spoil(self) -> None:
        self.numbers[...], self.scales[...] = 99, np.nan

    def put(self, block: Ints, place: Ints, x: Floats) -> None:
        groups = np.split(x, range(SCALE_GROUP, self.head_dim, SCALE_GROUP), axis=-1)
        for index, (q, scale) in enumerate(map(_ENCODE[self.kind.name], groups)):
            self.scales[block, :, index, place] = scale
            n_units = q.shape[-1] // self.kind.n_parts
            first = index * SCALE_GROUP // self.kind.n_parts
            if self.is_key:
                units = q.astype(np.uint8).reshape(*q.shape[:-1], -1, 2)
                self.numbers[block, :, first // 2 : (first + n_units) // 2, place] = units
            else:
                self.numbers[block, :, place // 2, first : first + n_units, place % 2] = self._value_bytes(q)

    def _value_bytes(self, q: Ints) -> NDArray[np.uint8]:
        if self.kind.n_parts == 1:
            return q.astype(np.uint8)
        low, high = np.split(q, 2, axis=-1)
        return (low | high << 4).astype(np.uint8)

    def floats(self) -> Floats:
        outer, q = self.numbers.shape[:2], self.numbers.astype(np.int64)
        scales = np.repeat(self.scales.astype(np.float32), SCALE_GROUP, axis=2)[:, :, : self.head_dim]
        if self.is_key:  # [..., units, KV_BLOCK, 2]
            return _signed(q).swapaxes(3, 4).reshape(*outer, self.head_dim, KV_BLOCK).astype(np.float32) * scales
        by_token = q.swapaxes(3, 4)
        if self.kind.n_parts == 1:
            numbers: NDArray[np.signedinteger] = _signed(by_token)
        else:
            halves = by_token.reshape(*outer, KV_BLOCK, -1, SCALE_GROUP // 2)
            numbers = LEVELS[np.stack([halves & 15, halves >> 4], axis=4)]
        return numbers.reshape(*outer, KV_BLOCK, self.head_dim).astype(np.float32) * scales.swapaxes(2, 3)


def _signed(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes as they are, from 0 to 255, as the signed ones that they stand for."""
    return numbers.astype(np.uint8).view(np.int8).astype(np.int64)


def _to_bytes(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """A group [..., 32 or fewer] as q8_0: its scale is the largest magnitude / 127, rounded to float16."""
    with np.errstate(all="ignore"):
        scale = (np.abs(x).max(-1) / np.float32(127)).astype(np.float16)
        return _rounded(x, scale.astype(np.float32), -127, 127), scale


def _to_nibbles(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """A group [..., 32] as q4_0: of some scales the one that keeps most, and then the best one for its levels."""
    with np.errstate(all="ignore"):
        largest = np.abs(x).max(-1)
        first = np.where(np.fmax.reduce(x, -1) > np.fmax.reduce(-x, -1), -largest, largest)
        best, scale, gain = np.zeros(x.shape, np.int64), largest - largest, np.zeros_like(largest)
        for reach in REACHES:
            index = _nearest(x * _inverse(first * np.float32(reach / -float(LEVELS[0]))))
            levels = LEVELS[index].astype(np.float32)
            products, squares = _folded(levels * x), _folded(levels * levels)
            found = products / squares
            own_gain = products * found
            is_better = ~(gain > own_gain)
            best = np.where(is_better[..., None], index, best)
            scale, gain = np.where(is_better, found, scale), np.where(is_better, own_gain, gain)
        return best, scale.astype(np.float16)


def _nearest(x: Floats) -> NDArray[np.int64]:
    """Which of LEVELS is nearest; of what is not a number the first."""
    return sum(((x > np.float32(bound)).astype(np.int64) for bound in BOUNDS), np.zeros(x.shape, np.int64))


def _rounded(x: Floats, scale: Floats, least: int, most: int) -> NDArray[np.int64]:
    limited = np.clip(x * _inverse(scale), least, most)
    return np.rint(np.where(np.isnan(limited), least, limited)).astype(np.int64)


def _inverse(scale: Floats) -> Floats:
    return np.where(np.abs(scale) > 0, np.float32(1) / scale, np.float32(0))[..., None]


def _folded(x: Floats) -> Floats:
    """Sums over the last axis by halves, first of the two halves of a group."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


_ENCODE = {"q8_0": _to_bytes, "q4_0": _to_nibbles}
