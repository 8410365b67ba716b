"""Caches of integers: against their twins, and equal to the bit however the work is divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgellm import params
from edgellm.errors import KernelError
from edgellm.kernels import reference
from edgellm.kernels.kv_types import F16_CACHE, KV_TYPES, Q4_0_CACHE, Q8_0_CACHE, IntegerKV
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.reference_cache import IntegerCache, rotate, round_queries
from edgellm.kernels.registry import find
from edgellm.quants import FORMATS

from .compiled import Compiled
from .test_attention import HEADS, same_bits

# Weights are rounded to steps of 1/32767 of the largest of a block: for sums of up to 64 values near 1, that are some
# 7e-5, and four times that for the worst of all.
ROUNDED = 5e-4

KINDS = [Q8_0_CACHE, Q4_0_CACHE]
# How far what is read back may be from what was put in, of the largest magnitude: half a step, and float16's rounding
# of the scale. A rotated number is a sum of many, so its error is as theirs, which are not all the largest.
STEPS = {"q8_0": 0.5 / 127 + 2**-11, "q4_0": 0.4}


class Text:
    """A sequence of n_tokens in a cache whose blocks lie in no order, among poison."""

    def __init__(
        self, kind: IntegerKV, n_tokens: int, head_dim: int, n_kv_heads: int, group: int, seed: int = 5
    ) -> None:
        rng = np.random.default_rng(seed)
        head_dim = kind.padded(head_dim)
        n_blocks = -(-n_tokens // KV_BLOCK)
        self.scale = head_dim**-0.5
        self.q = rng.standard_normal((n_tokens, n_kv_heads * group, head_dim), np.float32) * 2
        self.k, self.v = (rng.standard_normal((n_tokens, n_kv_heads, head_dim), np.float32) for _ in range(2))
        self.block_table = rng.permutation(n_blocks + 3)[:n_blocks]
        positions = np.arange(n_tokens)
        self.slots = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        self.cache = poisoned(kind, n_blocks + 3, n_kv_heads, head_dim)
        self.cache.append(self.slots, self.k, self.v)

    def attend(self, compiled: Compiled, first: int, end: int, window: int | None = None, split: int = 0):
        q, table = self.q[first:end], self.block_table
        return compiled.attention_integers(q, self.cache, table, first, self.scale, window, split)

    def twin(self, first: int, end: int, window: int | None = None):
        keys, values = self.cache.dequantize()
        q = round_queries(self.q[first:end], self.cache.kind)
        part = reference.attention(q, keys, values, self.block_table, first, self.scale, window)
        return reference.attention_merge([part])


def poisoned(kind: IntegerKV, n_blocks: int, n_kv_heads: int, head_dim: int) -> IntegerCache:
    cache = IntegerCache(kind, n_blocks, n_kv_heads, head_dim)
    cache.keys[...] = cache.values[...] = 99
    cache.key_scales[...] = cache.value_scales[...] = np.nan
    return cache


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> IntegerKV:
    return request.param


@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_a_prompt(compiled: Compiled, kind: IntegerKV, head_dim: int, n_kv_heads: int, group: int) -> None:
    for n_tokens in (1, 63, 130):
        text = Text(kind, n_tokens, head_dim, n_kv_heads, group)
        np.testing.assert_allclose(text.attend(compiled, 0, n_tokens), text.twin(0, n_tokens), atol=ROUNDED)


@pytest.mark.parametrize(("n_past", "window"), [(1, None), (63, 5), (256, 200), (700, None), (700, 300)])
def test_new_tokens_after_a_past(compiled: Compiled, kind: IntegerKV, n_past: int, window: int | None) -> None:
    text = Text(kind, n_past + 33, 80, 2, 3)
    for n_new in (1, 2, 33):
        for split in (0, 1, 5):
            got = text.attend(compiled, n_past, n_past + n_new, window, split)
            np.testing.assert_allclose(got, text.twin(n_past, n_past + n_new, window), atol=ROUNDED)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_one_task_or_many_give_the_same_bits(compiled: Compiled, kind, head_dim, n_kv_heads, group, window) -> None:
    n_tokens = 2 * SPAN_TOKENS + 40
    text = Text(kind, n_tokens, head_dim, n_kv_heads, group)
    first = n_tokens - 50
    together = text.attend(compiled, first, n_tokens, window)
    for split in (1, 7):
        assert same_bits(text.attend(compiled, first, n_tokens, window, split), together)
    cuts = [first, first + 1, first + 8, first + 31, n_tokens]
    parts = [text.attend(compiled, a, b, window) for a, b in pairwise(cuts)]
    assert same_bits(np.concatenate(parts), together)


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_the_cache_layout(compiled: Compiled, kind: IntegerKV, head_dim: int) -> None:
    """kv_append writes the numbers and scales of the given slots, all of them and no others, as its twin does."""
    text = Text(kind, 150, head_dim, 3, 1)
    text.k[3, 0] = 0
    text.k[4, 1], text.v[5, 2] = 1e-6, 4e-7  # scales among float16's smallest numbers
    text.v[6] *= 1e-12
    text.k[7, 1, ::3] *= 1e6  # and among its largest
    got, want = (poisoned(kind, len(text.block_table) + 3, 3, text.cache.head_dim) for _ in range(2))
    want.append(text.slots, text.k, text.v)
    compiled.kv_append_integers(got, text.slots, text.k, text.v)
    np.testing.assert_array_equal(got.key_scales, want.key_scales)
    np.testing.assert_array_equal(got.value_scales, want.value_scales)
    np.testing.assert_array_equal(got.memory, want.memory)
    assert np.count_nonzero(~np.isnan(got.key_scales)) == 150 * 3 * kind.n_groups(text.cache.head_dim)


def test_a_token_changes_nothing_of_others(compiled: Compiled, kind: IntegerKV) -> None:
    text = Text(kind, 64, 64, 2, 1)
    before = text.cache.dequantize()
    compiled.kv_append_integers(text.cache, text.slots[7:8], 5 * text.k[7:8], 5 * text.v[7:8])
    for old, new, axis in zip(before, text.cache.dequantize(), (3, 2), strict=True):
        others = [place for place in range(KV_BLOCK) if place != 7]
        np.testing.assert_array_equal(np.take(new, others, axis), np.take(old, others, axis))
        assert not np.array_equal(np.take(new, 7, axis), np.take(old, 7, axis), equal_nan=True)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e10])
def test_what_does_not_fit_spoils_its_groups_alone(compiled: Compiled, kind: IntegerKV, bad: float) -> None:
    """The group that it is in; where heads are rotated, all groups that it is turned into. And it is seen."""
    text = Text(kind, 3, 64, 1, 1)
    text.k[1, 0, 40] = text.v[1, 0, 3] = bad
    compiled.kv_append_integers(text.cache, text.slots, text.k, text.v)
    block, place = text.slots // KV_BLOCK, text.slots % KV_BLOCK
    spoilt = [[0, 0], [0, 0]] if kind.is_rotated else [[1, 0], [0, 1]]
    for scales, one in zip((text.cache.key_scales, text.cache.value_scales), spoilt, strict=True):
        assert (np.isfinite(scales[block, 0, :, place]) == [[1, 1], one, [1, 1]]).all()
    assert not np.isfinite(text.attend(compiled, 1, 3)).all()


def test_precision(compiled: Compiled, kind: IntegerKV) -> None:
    """What is read back is near what was put in, by its largest and by its mean difference."""
    rng = np.random.default_rng(1)
    k, v = (rng.uniform(-1, 1, (KV_BLOCK, 2, 96)).astype(np.float32) for _ in range(2))
    cache = IntegerCache(kind, 2, 2, 96)
    compiled.kv_append_integers(cache, np.arange(KV_BLOCK), k, v)
    keys, values = cache.dequantize()
    for got, x in ((keys[0].transpose(2, 0, 1), k), (values[0].transpose(1, 0, 2), v)):
        assert np.abs(got - x).max() < STEPS[kind.name]
        assert np.square(got - x).mean() < np.square(x).mean() * {"q8_0": 3e-5, "q4_0": 0.007}[kind.name]


@pytest.mark.parametrize("n", [16, 32, 48, 80, 96, 256])
def test_rotating_is_its_own_inverse_and_keeps_products(n: int) -> None:
    a, b = np.random.default_rng(n).standard_normal((2, 7, n)).astype(np.float32)
    np.testing.assert_allclose(rotate(rotate(a)), a, atol=2e-6)
    np.testing.assert_allclose((rotate(a) * rotate(b)).sum(-1), (a * b).sum(-1), atol=2e-5)
    matrix = rotate(np.eye(n, dtype=np.float32)) * np.sqrt(n & -n)
    np.testing.assert_allclose(np.abs(matrix).sum(0), n & -n, rtol=1e-6)  # 1 or -1 in a block of its own, else 0


def test_a_large_number_leaves_steps_for_the_others(compiled: Compiled) -> None:
    """What rotating is for: beside one number of 30, those near 1 would all be 0."""
    k = np.random.default_rng(2).standard_normal((KV_BLOCK, 1, 64)).astype(np.float32)
    k[:, :, 5] = 30
    cache = IntegerCache(Q4_0_CACHE, 1, 1, 64)
    compiled.kv_append_integers(cache, np.arange(KV_BLOCK), k, k)
    others = np.arange(64) != 5
    got = cache.dequantize()[1][0].transpose(1, 0, 2)
    assert np.square(got - k)[..., others].mean() < 0.5 * np.square(k)[..., others].mean()


def test_sizes() -> None:
    assert F16_CACHE.block_bytes(3, 64, 64) == KV_BLOCK * 3 * 64 * 2 * 2
    assert Q8_0_CACHE.block_bytes(3, 64, 64) == KV_BLOCK * 3 * (64 + 2 * 2) * 2
    assert Q8_0_CACHE.block_bytes(1, 80, 80) == KV_BLOCK * (80 + 3 * 2) * 2
    assert Q4_0_CACHE.block_bytes(3, 64, 64) == KV_BLOCK * 3 * (32 + 2 * 2) * 2
    assert (Q4_0_CACHE.padded(80), Q8_0_CACHE.padded(80), Q8_0_CACHE.padded(81)) == (96, 80, 96)


def test_names() -> None:
    assert tuple(KV_TYPES) == params.KV_TYPES
    assert find("attention", Q8_0_CACHE).symbol == "edgellm_attention_q8_0"
    with pytest.raises(KernelError, match="attention"):
        find("attention", FORMATS["Q8_0"])
    with pytest.raises(KernelError, match=r"rope.*f16"):
        find("rope", F16_CACHE)
