"""Attention over a paged cache: against its twin, and equal to the bit however the work is divided."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgellm.kernels import reference
from edgellm.kernels.kv_types import F16_CACHE, F32_CACHE, CacheType
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS

from .compiled import Compiled
from .conftest import AVAILABLE, DISTINCT, thorough_unless, usually_on_the_best

# Scores reach 20 and are sums of up to 256 float32 products: off by some 1e-6, and so are their exponentials,
# relatively, and the sums of values near 1 that they weigh.
ATTENTION = 2e-5

HEADS = [(16, 1, 1), (64, 3, 3), (80, 2, 2), (128, 1, 8), (256, 2, 1), (64, 1, 5)]  # head_dim, n_kv_heads, group


class Text:
    """A sequence of n_tokens in a cache whose blocks lie in no order, among poison."""

    def __init__(
        self,
        n_tokens: int,
        head_dim: int,
        n_kv_heads: int,
        group: int,
        seed: int = 5,
        kv_type: CacheType = F16_CACHE,
        value_dim: int | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.kv_type = kv_type
        n_blocks = -(-n_tokens // KV_BLOCK)
        self.scale = head_dim**-0.5
        self.q = rng.standard_normal((n_tokens, n_kv_heads * group, head_dim), np.float32) * 2
        self.block_table = rng.permutation(n_blocks + 3)[:n_blocks]
        dtype = np.dtype(f"<f{kv_type.keys.number_bits // 8}")
        self.cache = reference.new_cache(n_blocks + 3, n_kv_heads, head_dim, dtype, value_dim)
        for part in self.cache:
            part[...] = np.nan
        positions = np.arange(n_tokens)
        self.slots = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        self.k, self.v = (
            rng.standard_normal((n_tokens, n_kv_heads, dim), np.float32) for dim in (head_dim, value_dim or head_dim)
        )
        reference.kv_append(*self.cache, self.slots, self.k, self.v)

    def attend(self, compiled: Compiled, first: int, end: int, window: int | None = None, split: int = 0, **more):
        q, table = self.q[first:end], self.block_table
        return compiled.attention(q, *self.cache, table, first, self.scale, window, split, self.kv_type, **more)

    def twin(self, first: int, end: int, window: int | None = None, sinks: np.ndarray | None = None, **more):
        part = reference.attention(self.q[first:end], *self.cache, self.block_table, first, self.scale, window, **more)
        return reference.attention_merge([part], sinks)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_a_prompt(compiled: Compiled, head_dim: int, n_kv_heads: int, group: int) -> None:
    for n_tokens in (1, 3, 63, 64, 65, 130):
        text = Text(n_tokens, head_dim, n_kv_heads, group)
        np.testing.assert_allclose(text.attend(compiled, 0, n_tokens), text.twin(0, n_tokens), atol=ATTENTION)


@usually_on_the_best
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_a_cache_of_float32(compiled: Compiled, head_dim: int, n_kv_heads: int, group: int) -> None:
    text = Text(330, head_dim, n_kv_heads, group, kv_type=F32_CACHE)
    for first, end in ((0, 130), (300, 330), (329, 330)):
        np.testing.assert_allclose(text.attend(compiled, first, end), text.twin(first, end), atol=ATTENTION)
    written = reference.new_cache(len(text.block_table) + 3, n_kv_heads, head_dim, np.float32)
    compiled.kv_append(*written, text.slots, text.k, text.v, F32_CACHE)
    for got, want in zip(written, text.cache, strict=True):
        np.testing.assert_array_equal(got[text.block_table[0]], want[text.block_table[0]])


@pytest.mark.parametrize("n_past", [1, 62, 63, 64, 127, 254, 255, 256, 257, 511, 512, 700])
@pytest.mark.parametrize("n_new", [1, 2, 33])
@pytest.mark.parametrize("split", [False, True])
def test_new_tokens_after_a_past(compiled: Compiled, n_past: int, n_new: int, split: bool) -> None:
    text = Text(n_past + n_new, 64, 2, 3)
    got = text.attend(compiled, n_past, n_past + n_new, split=split)
    np.testing.assert_allclose(got, text.twin(n_past, n_past + n_new), atol=ATTENTION)


@pytest.mark.parametrize("window", [1, 5, 63, 64, 65, 200, 256, 300, 10_000])
@pytest.mark.parametrize("split", [False, True])
def test_a_window(compiled: Compiled, window: int, split: bool) -> None:
    text = Text(600, 32, 1, 2)
    for first, end in ((0, 90), (180, 300), (570, 600), (599, 600)):
        got = text.attend(compiled, first, end, window, split)
        np.testing.assert_allclose(got, text.twin(first, end, window), atol=ATTENTION)


@pytest.mark.parametrize("window", [None, 5, 100, 300])
@pytest.mark.parametrize(("head_dim", "n_kv_heads", "group"), HEADS)
def test_one_task_or_many_give_the_same_bits(compiled: Compiled, head_dim, n_kv_heads, group, window) -> None:
    """A batch, odd parts of it, single tokens, and single tokens whose past is split into spans."""
    n_tokens = 2 * SPAN_TOKENS + 40
    text = Text(n_tokens, head_dim, n_kv_heads, group)
    first = n_tokens - 50
    together = text.attend(compiled, first, n_tokens, window)
    for split in (1, 7):
        assert same_bits(text.attend(compiled, first, n_tokens, window, split=split), together)
    cuts = [first, first + 1, first + 8, first + 31, n_tokens]
    parts = [text.attend(compiled, a, b, window) for a, b in pairwise(cuts)]
    assert same_bits(np.concatenate(parts), together)
    alone = [text.attend(compiled, token, token + 1, window) for token in range(n_tokens - 4, n_tokens)]
    assert same_bits(np.concatenate(alone), together[-4:])


N_HEADS = 6
MORE: dict[str, dict[str, Any]] = {  # what attention can have beside
    "soft cap": {"soft_cap": 3.0},
    "sinks": {"sinks": np.linspace(-3, 8, N_HEADS, dtype=np.float32)},
    "linear biases": {"slopes": (0.5 ** np.arange(N_HEADS)).astype(np.float32)},
    "all": {
        "soft_cap": 5.0,
        "sinks": np.full(N_HEADS, 2.0, np.float32),
        "slopes": np.full(N_HEADS, 0.03, np.float32),
    },
}


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("window", [None, 5, 100, 300])
def test_what_scores_can_go_through(compiled: Compiled, more: str, window: int | None) -> None:
    """Against the twin, which without it says something else; and the same bits however the work is divided."""
    text = Text(2 * SPAN_TOKENS + 40, 32, 2, N_HEADS // 2)
    first, end = len(text.q) - 30, len(text.q)
    together = text.attend(compiled, first, end, window, **MORE[more])
    np.testing.assert_allclose(together, text.twin(first, end, window, **MORE[more]), atol=ATTENTION)
    assert np.abs(together - text.twin(first, end, window)).max() > 100 * ATTENTION
    assert same_bits(text.attend(compiled, first, end, window, split=True, **MORE[more]), together)
    parts = [text.attend(compiled, a, b, window, **MORE[more]) for a, b in pairwise([first, first + 1, first + 9, end])]
    assert same_bits(np.concatenate(parts), together)
    np.testing.assert_allclose(
        text.attend(compiled, 0, 70, window, **MORE[more]), text.twin(0, 70, window, **MORE[more]), atol=ATTENTION
    )


@pytest.mark.parametrize(
    ("compiled", "kv_type"),
    [thorough_unless(isa is AVAILABLE[0] or kind is F16_CACHE, isa, kind)
     for isa in DISTINCT for kind in (F16_CACHE, F32_CACHE)],
    ids=lambda x: getattr(x, "name", None),
    indirect=["compiled"],
)  # fmt: skip
@pytest.mark.parametrize(("key_dim", "value_dim"), [(96, 64), (32, 80), (192, 128), (16, 256)])
def test_values_of_another_width_than_keys(
    compiled: Compiled, kv_type: CacheType, key_dim: int, value_dim: int
) -> None:
    text = Text(330, key_dim, 2, 3, kv_type=kv_type, value_dim=value_dim)
    for first, end in ((0, 130), (300, 330), (329, 330)):
        together = text.attend(compiled, first, end)
        np.testing.assert_allclose(together, text.twin(first, end), atol=ATTENTION)
        assert same_bits(text.attend(compiled, first, end, split=True), together)
    written = reference.new_cache(len(text.block_table) + 3, 2, key_dim, text.cache[0].dtype, value_dim)
    compiled.kv_append(*written, text.slots, text.k, text.v, kv_type)
    for got, want in zip(written, text.cache, strict=True):
        np.testing.assert_array_equal(got[text.block_table[0]], want[text.block_table[0]])


def test_large_scores_do_not_overflow(compiled: Compiled) -> None:
    text = Text(300, 64, 1, 2)
    text.q *= 1000
    np.testing.assert_allclose(text.attend(compiled, 250, 300), text.twin(250, 300), atol=1e-3)


def test_the_cache_layout(compiled: Compiled) -> None:
    """kv_append writes the given slots, all of them and no others."""
    text = Text(150, 80, 3, 1)
    got = reference.new_cache(len(text.block_table) + 3, 3, 80)
    for part in got:
        part[...] = np.nan
    compiled.kv_append(*got, text.slots, text.k, text.v)
    for ours, twins in zip(got, text.cache, strict=True):
        np.testing.assert_array_equal(ours, twins)


def test_parts_merge_to_the_whole() -> None:
    """The twins among themselves: spans, one of which no token of the slice may see."""
    text = Text(200, 16, 1, 1)
    parts = [
        reference.attention(text.q[150:160], *text.cache, text.block_table, 150, text.scale, 40, begin, end)
        for begin, end in ((0, 64), (64, 128), (128, 160))
    ]
    np.testing.assert_allclose(reference.attention_merge(parts), text.twin(150, 160, 40), atol=1e-6)
