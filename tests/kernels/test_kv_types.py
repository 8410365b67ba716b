"""Caches of integers, and of two types: against their twins, and equal to the bit however the work is divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgellm import params
from edgellm.errors import KernelError
from edgellm.kernels import reference
from edgellm.kernels.isa import Isa
from edgellm.kernels.kv_types import (
    CACHE_TYPES,
    F16_CACHE,
    KV_TYPES,
    Q4_0_KV,
    Q8_0_KV,
    CacheType,
    ChannelKeys,
    IntegerKV,
)
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.reference_cache import PagedCache, rotate, round_queries
from edgellm.kernels.registry import find
from edgellm.quants import FORMATS

from .compiled import Compiled
from .conftest import AVAILABLE, DISTINCT, SELDOM, thorough_unless
from .test_attention import HEADS, same_bits

# Weights are rounded to steps of 1/32767 of the largest of a block: for sums of up to 64 values near 1, that are some
# 7e-5, and four times that for the worst of all.
ROUNDED = 5e-4

KINDS = [CACHE_TYPES[name] for name in ("q8_0", "q4_0")]
# Keys of one type and values of another: both of integers, floats on either side, and two kinds of floats.
MIXED = [CACHE_TYPES[name] for name in ("q8_0:q4_0", "q4_0:f16", "f16:q4_0", "f32:f16")]
# All of them on the best instruction set, and one of integers on the others, where its halves alone are usual.
MIXED_ON = [
    thorough_unless(isa is AVAILABLE[0], isa, mixed)
    for isa in AVAILABLE
    for mixed in (MIXED if isa is AVAILABLE[0] else MIXED[:1])
]
# How far what is read back may be from what was put in, of the largest magnitude: float16's rounding. Integers are of
# rotated numbers, so an error is a sum of many, of half a step each at most: a few times as large in the worst number.
STEPS = {"q8_0": 0.03, "q4_0": 0.4, "f16": 2**-11, "f32": 0.0}
ERRORS = {"q8_0": 3.2e-5, "q4_0": 0.006, "f16": 2**-22, "f32": 0.0}  # mean squares of that, over mean squares


class Text:
    """A sequence of n_tokens in a cache whose blocks lie in no order, among poison."""

    def __init__(
        self, kind: CacheType, n_tokens: int, head_dim: int, n_kv_heads: int, group: int, seed: int = 5
    ) -> None:
        rng = np.random.default_rng(seed)
        key_dim, value_dim = kind.keys.padded(head_dim), kind.values.padded(head_dim)
        self.dims = key_dim, value_dim
        n_blocks = -(-n_tokens // KV_BLOCK)
        self.scale = key_dim**-0.5
        self.q = rng.standard_normal((n_tokens, n_kv_heads * group, key_dim), np.float32) * 2
        self.k, self.v = (rng.standard_normal((n_tokens, n_kv_heads, dim), np.float32) for dim in (key_dim, value_dim))
        self.block_table = rng.permutation(n_blocks + 3)[:n_blocks]
        positions = np.arange(n_tokens)
        self.slots = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        self.cache = poisoned(kind, n_blocks + 3, n_kv_heads, key_dim, value_dim)
        self.cache.append(self.slots, self.k, self.v)

    def attend(self, compiled: Compiled, first: int, end: int, window: int | None = None, split: int = 0):
        q, table = self.q[first:end], self.block_table
        return compiled.attention_over(q, self.cache, table, first, self.scale, window, split)

    def twin(self, first: int, end: int, window: int | None = None):
        """Block by block: what a token sees of its own block may be stored otherwise than that of others."""
        q, results = round_queries(self.q, self.cache.kind.keys), []
        for block in range(first // KV_BLOCK, (end - 1) // KV_BLOCK + 1):
            begin, stop = max(first, block * KV_BLOCK), min(end, (block + 1) * KV_BLOCK)
            keys, values = self.cache.dequantize(self.block_table[block])
            part = reference.attention(q[begin:stop], keys, values, self.block_table, begin, self.scale, window)
            results.append(reference.attention_merge([part]))
        return np.concatenate(results)


def poisoned(kind: CacheType, n_blocks: int, n_kv_heads: int, key_dim: int, value_dim: int) -> PagedCache:
    cache = PagedCache(kind, n_blocks, n_kv_heads, key_dim, value_dim)
    cache.spoil()
    return cache


def name_of(value: Isa | CacheType) -> str:
    return value.name if isinstance(value, Isa) else str(value)


def kinds_on(isas: list[Isa]) -> pytest.MarkDecorator:
    """Every kind of integers, and one where kernels are SELDOM all tried: attention takes long to compile."""
    pairs = [thorough_unless(isa not in SELDOM or kind is KINDS[0], isa, kind) for isa in isas for kind in KINDS]
    return pytest.mark.parametrize(("compiled", "kind"), pairs, ids=name_of, indirect=["compiled"])


@kinds_on(DISTINCT)
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_a_prompt(compiled: Compiled, kind: CacheType, head_dim: int, n_kv_heads: int, group: int) -> None:
    for n_tokens in (1, 63, 130):
        text = Text(kind, n_tokens, head_dim, n_kv_heads, group)
        np.testing.assert_allclose(text.attend(compiled, 0, n_tokens), text.twin(0, n_tokens), atol=ROUNDED)


@kinds_on(AVAILABLE)
@pytest.mark.parametrize(("n_past", "window"), [(1, None), (63, 5), (256, 200), (700, None), (700, 300)])
def test_new_tokens_after_a_past(compiled: Compiled, kind: CacheType, n_past: int, window: int | None) -> None:
    text = Text(kind, n_past + 33, 80, 2, 3)
    for n_new in (1, 2, 33):
        for split in (0, 1, 5):
            got = text.attend(compiled, n_past, n_past + n_new, window, split)
            np.testing.assert_allclose(got, text.twin(n_past, n_past + n_new, window), atol=ROUNDED)


@kinds_on(AVAILABLE)
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


@kinds_on(AVAILABLE)
@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_the_cache_layout(compiled: Compiled, kind: CacheType, head_dim: int) -> None:
    """kv_append writes the numbers and scales of the given slots, all of them and no others, as its twin does."""
    text = Text(kind, 150, head_dim, 3, 1)
    text.k[3, 0] = 0
    text.k[4, 1], text.v[5, 2] = 1e-6, 4e-7  # scales among float16's smallest numbers
    text.v[6] *= 1e-12
    text.k[7, 1, ::3] *= 1e6  # and among its largest
    got, want = (poisoned(kind, len(text.block_table) + 3, 3, *text.dims) for _ in range(2))
    want.append(text.slots, text.k, text.v)
    compiled.append_to(got, text.slots, text.k, text.v)
    for found, expected in ((got.keys, want.keys), (got.values, want.values)):
        if isinstance(found.kind, ChannelKeys):
            for name in ("scales", "minima", "firsts"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
                assert np.isnan(np.delete(getattr(found, name), text.block_table[:2], axis=0)).all()  # not full
            np.testing.assert_array_equal(found.numbers, expected.numbers)
            continue
        np.testing.assert_array_equal(found.numbers, expected.numbers)
        if isinstance(found.kind, IntegerKV):
            np.testing.assert_array_equal(found.scales, expected.scales)
            assert np.count_nonzero(~np.isnan(found.scales)) == 150 * 3 * found.kind.n_groups(found.head_dim)
        else:
            assert np.count_nonzero(~np.isnan(found.numbers)) == 150 * 3 * text.dims[0 if found.is_key else 1]


@kinds_on(AVAILABLE)
def test_a_token_changes_nothing_of_others(compiled: Compiled, kind: CacheType) -> None:
    text = Text(kind, 64, 64, 2, 1)
    before = text.cache.dequantize(text.block_table[0])
    compiled.append_to(text.cache, text.slots[7:8], 5 * text.k[7:8], 5 * text.v[7:8])
    for old, new, axis in zip(before, text.cache.dequantize(text.block_table[0]), (3, 2), strict=True):
        others = [place for place in range(KV_BLOCK) if place != 7]
        np.testing.assert_array_equal(np.take(new, others, axis), np.take(old, others, axis))
        assert not np.array_equal(np.take(new, 7, axis), np.take(old, 7, axis), equal_nan=True)


@kinds_on(AVAILABLE)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e10])
def test_what_does_not_fit_spoils_its_groups_alone(compiled: Compiled, kind: CacheType, bad: float) -> None:
    """The group that it is in; where heads are rotated, all groups that it is turned into. And it is seen."""
    text = Text(kind, 3, 64, 1, 1)
    text.k[1, 0, 40] = text.v[1, 0, 3] = bad
    compiled.append_to(text.cache, text.slots, text.k, text.v)
    block, place = text.slots // KV_BLOCK, text.slots % KV_BLOCK
    for half, own in ((text.cache.keys, [1, 0]), (text.cache.values, [0, 1])):
        if isinstance(half.kind, IntegerKV):
            one = [0, 0] if half.kind.is_rotated else own
            assert (np.isfinite(half.scales[block, 0, :, place]) == [[1, 1], one, [1, 1]]).all()
    assert not np.isfinite(text.attend(compiled, 1, 3)).all()


@kinds_on(AVAILABLE)
def test_precision(compiled: Compiled, kind: CacheType) -> None:
    """What is read back is near what was put in, by its largest and by its mean difference."""
    rng = np.random.default_rng(1)
    k, v = (rng.uniform(-1, 1, (KV_BLOCK, 2, 96)).astype(np.float32) for _ in range(2))
    cache = PagedCache(kind, 2, 2, 96, 96)
    compiled.append_to(cache, np.arange(KV_BLOCK), k, v)
    keys, values = cache.dequantize()
    for part, got, x in ((kind.keys, keys[0].transpose(2, 0, 1), k), (kind.values, values[0].transpose(1, 0, 2), v)):
        assert np.abs(got - x).max() <= STEPS[part.name]
        assert np.square(got - x).mean() <= np.square(x).mean() * ERRORS[part.name]


@pytest.mark.parametrize("n", [16, 32, 48, 80, 96, 256])
def test_rotating_is_its_own_inverse_and_keeps_products(n: int) -> None:
    a, b = np.random.default_rng(n).standard_normal((2, 7, n)).astype(np.float32)
    np.testing.assert_allclose(rotate(rotate(a)), a, atol=2e-6)
    np.testing.assert_allclose((rotate(a) * rotate(b)).sum(-1), (a * b).sum(-1), atol=2e-5)
    matrix = rotate(np.eye(n, dtype=np.float32)) * np.sqrt(n & -n)
    np.testing.assert_allclose(np.abs(matrix).sum(0), n & -n, rtol=1e-6)  # 1 or -1 in a block of its own, else 0


@pytest.mark.parametrize(("name", "large", "error"), [("q4_0", 30, 0.5), ("q8_0", 300, 0.02)])
def test_a_large_number_leaves_steps_for_the_others(compiled: Compiled, name: str, large: float, error: float) -> None:
    """What rotating is for: beside one number that is so large, those near 1 would all be 0, or one of few."""
    k = np.random.default_rng(2).standard_normal((KV_BLOCK, 1, 64)).astype(np.float32)
    k[:, :, 5] = large
    cache = PagedCache(CACHE_TYPES[name], 1, 1, 64, 64)
    compiled.append_to(cache, np.arange(KV_BLOCK), k, k)
    others = np.arange(64) != 5
    got = cache.dequantize()[1][0].transpose(1, 0, 2)
    assert np.square(got - k)[..., others].mean() < error * np.square(k)[..., others].mean()


@pytest.mark.parametrize(("compiled", "mixed"), MIXED_ON, ids=name_of, indirect=["compiled"])
def test_keys_and_values_of_two_types(compiled: Compiled, mixed: CacheType) -> None:
    """All that is said above of one type."""
    test_the_cache_layout(compiled, mixed, 80)
    test_a_token_changes_nothing_of_others(compiled, mixed)
    for bad in (np.inf, np.nan):
        test_what_does_not_fit_spoils_its_groups_alone(compiled, mixed, bad)
    test_precision(compiled, mixed)
    test_new_tokens_after_a_past(compiled, mixed, 300, 200)
    for head_dim, n_kv_heads, group in ((16, 1, 1), (80, 2, 3)):
        test_a_prompt(compiled, mixed, head_dim, n_kv_heads, group)
    test_one_task_or_many_give_the_same_bits(compiled, mixed, 80, 2, 2, 100)


def test_sizes() -> None:
    def n_bytes(name: str, *shape: int) -> int:
        return CACHE_TYPES[name].block_bytes(*shape)

    assert n_bytes("f16", 3, 64, 64) == KV_BLOCK * 3 * 64 * 2 * 2
    assert n_bytes("q8_0", 3, 64, 64) == KV_BLOCK * 3 * (64 + 2 * 2) * 2
    assert n_bytes("q8_0", 1, 80, 80) == KV_BLOCK * (80 + 3 * 2) * 2
    assert n_bytes("q4_0", 3, 64, 64) == KV_BLOCK * 3 * (32 + 2 * 2) + 3 * 64 * (32 + 3 * 2)
    assert n_bytes("f16:q4_0", 3, 64, 64) == KV_BLOCK * 3 * (64 * 2 + 32 + 2 * 2)
    assert n_bytes("q8_0:q4_0", 3, 64, 64) == KV_BLOCK * 3 * ((64 + 2 * 2) + (32 + 2 * 2))
    assert n_bytes("f32:q8_0", 2, 64, 32) == KV_BLOCK * 2 * (64 * 4 + (32 + 2))
    assert (Q4_0_KV.padded(80), Q8_0_KV.padded(80), Q8_0_KV.padded(81)) == (96, 80, 96)


def test_names() -> None:
    assert tuple(KV_TYPES) == params.KV_TYPES
    assert len(CACHE_TYPES) == len(KV_TYPES) ** 2
    assert find("attention", CACHE_TYPES["q8_0"]).symbol == "edgellm_attention_q8_0"
    assert find("attention", CACHE_TYPES["q8_0:q4_0"]).symbol == "edgellm_attention_q8_0_q4_0"
    with pytest.raises(KernelError, match="attention"):
        find("attention", FORMATS["Q8_0"])
    with pytest.raises(KernelError, match=r"rope.*f16"):
        find("rope", F16_CACHE)
