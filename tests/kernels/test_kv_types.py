"""The q8_0 cache: against its twins, and equal to the bit however the work is divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgellm import params
from edgellm.errors import KernelError
from edgellm.kernels import reference
from edgellm.kernels.kv_types import F16_CACHE, KV_TYPES, Q8_0_CACHE
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.reference import Q8Cache
from edgellm.kernels.registry import find
from edgellm.quants import FORMATS

from .compiled import Compiled
from .test_attention import ATTENTION, HEADS, same_bits

# Of a group whose largest magnitude is 1: half a step of 1/127, and float16's rounding of the scale.
STEP = 0.5 / 127 + 2**-11


class Text:
    """A sequence of n_tokens in a q8_0 cache whose blocks lie in no order, among poison."""

    def __init__(self, n_tokens: int, head_dim: int, n_kv_heads: int, group: int, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        n_blocks = -(-n_tokens // KV_BLOCK)
        self.scale = head_dim**-0.5
        self.q = rng.standard_normal((n_tokens, n_kv_heads * group, head_dim), np.float32) * 2
        self.k, self.v = (rng.standard_normal((n_tokens, n_kv_heads, head_dim), np.float32) for _ in range(2))
        self.block_table = rng.permutation(n_blocks + 3)[:n_blocks]
        positions = np.arange(n_tokens)
        self.slots = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        self.cache = poisoned(n_blocks + 3, n_kv_heads, head_dim)
        self.cache.append(self.slots, self.k, self.v)

    def attend(self, compiled: Compiled, first: int, end: int, window: int | None = None, split: bool = False):
        keys, values = self.cache.keys, self.cache.values
        q, table = self.q[first:end], self.block_table
        return compiled.attention(q, keys, values, table, first, self.scale, window, split, Q8_0_CACHE)

    def twin(self, first: int, end: int, window: int | None = None):
        keys, values = self.cache.dequantize()
        part = reference.attention(self.q[first:end], keys, values, self.block_table, first, self.scale, window)
        return reference.attention_merge([part])


def poisoned(n_blocks: int, n_kv_heads: int, head_dim: int) -> Q8Cache:
    cache = Q8Cache.new(n_blocks, n_kv_heads, head_dim)
    for numbers in (cache.keys, cache.values):
        numbers[...] = 99
    for scales in (cache.key_scales, cache.value_scales):
        scales[...] = np.nan
    return cache


def append(compiled: Compiled, cache: Q8Cache, slots: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    compiled.kv_append(cache.keys, cache.values, slots, k, v, Q8_0_CACHE)


@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_a_prompt(compiled: Compiled, head_dim: int, n_kv_heads: int, group: int) -> None:
    for n_tokens in (1, 63, 65, 130):
        text = Text(n_tokens, head_dim, n_kv_heads, group)
        np.testing.assert_allclose(text.attend(compiled, 0, n_tokens), text.twin(0, n_tokens), atol=ATTENTION)


@pytest.mark.parametrize(("n_past", "window"), [(1, None), (63, 5), (255, None), (256, 200), (700, None), (700, 300)])
def test_new_tokens_after_a_past(compiled: Compiled, n_past: int, window: int | None) -> None:
    text = Text(n_past + 33, 80, 2, 3)
    for n_new in (1, 2, 33):
        for split in (False, True):
            got = text.attend(compiled, n_past, n_past + n_new, window, split)
            np.testing.assert_allclose(got, text.twin(n_past, n_past + n_new, window), atol=ATTENTION)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_one_task_or_many_give_the_same_bits(compiled: Compiled, head_dim, n_kv_heads, group, window) -> None:
    n_tokens = 2 * SPAN_TOKENS + 40
    text = Text(n_tokens, head_dim, n_kv_heads, group)
    first = n_tokens - 50
    together = text.attend(compiled, first, n_tokens, window)
    assert same_bits(text.attend(compiled, first, n_tokens, window, split=True), together)
    cuts = [first, first + 1, first + 8, first + 31, n_tokens]
    parts = [text.attend(compiled, a, b, window) for a, b in pairwise(cuts)]
    assert same_bits(np.concatenate(parts), together)


@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_the_cache_layout(compiled: Compiled, head_dim: int) -> None:
    """kv_append writes the numbers and scales of the given slots, all of them and no others, as its twin does."""
    text = Text(150, head_dim, 3, 1)
    text.k[3, 0] = 0
    text.k[4, 1], text.v[5, 2] = 1e-6, 4e-7  # scales among float16's smallest numbers
    text.v[6] *= 1e-12
    text.k[7, 1, ::3] *= 1e6  # and among its largest
    got, want = (poisoned(len(text.block_table) + 3, 3, head_dim) for _ in range(2))
    want.append(text.slots, text.k, text.v)
    append(compiled, got, text.slots, text.k, text.v)
    for ours, twins in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, twins)
    assert np.count_nonzero(np.isfinite(got.key_scales)) == 150 * 3 * -(-head_dim // 32)


def test_a_token_changes_nothing_of_others(compiled: Compiled) -> None:
    text = Text(64, 64, 2, 1)
    before = [part.copy() for part in text.cache]
    append(compiled, text.cache, text.slots[7:8], 5 * text.k[7:8], 5 * text.v[7:8])
    for old, new, axis in zip(before, text.cache, (3, 3, 2, 3), strict=True):
        others = [place for place in range(KV_BLOCK) if place != 7]
        np.testing.assert_array_equal(np.take(new, others, axis), np.take(old, others, axis))
        assert not np.array_equal(np.take(new, 7, axis), np.take(old, 7, axis), equal_nan=True)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e10])
def test_what_does_not_fit_spoils_its_group_alone(compiled: Compiled, bad: float) -> None:
    text = Text(3, 64, 1, 1)
    text.k[1, 0, 40] = text.v[1, 0, 3] = bad
    append(compiled, text.cache, text.slots, text.k, text.v)
    block, place = text.slots // KV_BLOCK, text.slots % KV_BLOCK
    assert (np.isfinite(text.cache.key_scales[block, 0, :, place]) == [[1, 1], [1, 0], [1, 1]]).all()
    assert (np.isfinite(text.cache.value_scales[block, 0, :, place]) == [[1, 1], [0, 1], [1, 1]]).all()


def test_precision(compiled: Compiled) -> None:
    """What is read back is what was put in, to half a step."""
    rng = np.random.default_rng(1)
    k, v = (rng.uniform(-1, 1, (KV_BLOCK, 2, 80)).astype(np.float32) for _ in range(2))
    cache = Q8Cache.new(2, 2, 80)
    append(compiled, cache, np.arange(KV_BLOCK), k, v)
    keys, values = cache.dequantize()
    assert np.abs(keys[0].transpose(2, 0, 1) - k).max() < STEP
    assert np.abs(values[0].transpose(1, 0, 2) - v).max() < STEP


def test_sizes() -> None:
    assert F16_CACHE.block_bytes(3, 64, 64) == KV_BLOCK * 3 * 64 * 2 * 2
    assert Q8_0_CACHE.block_bytes(3, 64, 64) == KV_BLOCK * 3 * (64 + 2 * 2) * 2
    assert Q8_0_CACHE.block_bytes(1, 80, 80) == KV_BLOCK * (80 + 3 * 2) * 2
    assert Q8Cache.new(2, 3, 80).keys.strides[0] == Q8_0_CACHE.block_bytes(3, 80, 80)


def test_names() -> None:
    assert tuple(KV_TYPES) == params.KV_TYPES
    assert find("attention", Q8_0_CACHE).symbol == "edgellm_attention_q8_0"
    with pytest.raises(KernelError, match="attention"):
        find("attention", FORMATS["Q8_0"])
    with pytest.raises(KernelError, match=r"rope.*f16"):
        find("rope", F16_CACHE)
