"""Kernels of encoders: each against its twin, twins against torch, and a text the same to the bit among others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgellm.kernels import reference_encoder
from edgellm.kernels.encoder_records import QUERY_TILE, TEXT_QUERIES

from .compiled import Compiled
from .compiled_encoder import CompiledEncoder
from .compiled_rows import CompiledRows

# Scores reach 20 and are sums of up to 256 float32 products; sums of values near 1 are weighed with their exponentials.
ATTENTION = 2e-5

HEADS = [(16, 16, 1, 1), (32, 32, 3, 1), (64, 64, 2, 3), (80, 80, 1, 2), (128, 96, 1, 1), (7, 5, 2, 2)]
LENGTHS = [(1,), (QUERY_TILE,), (5, 1, 2 * QUERY_TILE + 1, 3), (TEXT_QUERIES + 70, 2), (300,)]
SIGHTS = [(None, None), (1, 0), (None, 0), (9, 8), (50, 90), (10_000, 10_000)]


@pytest.fixture
def kernels(compiled: Compiled) -> CompiledEncoder:
    return CompiledEncoder(compiled)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def inputs(lengths: tuple[int, ...], heads: tuple[int, int, int, int], seed: int = 3) -> list[np.ndarray]:
    key_dim, value_dim, n_kv_heads, group = heads
    rng = np.random.default_rng(seed)
    shapes = [(n_kv_heads * group, key_dim), (n_kv_heads, key_dim), (n_kv_heads, value_dim)]
    q, k, v = (rng.standard_normal((sum(lengths), *shape), np.float32) for shape in shapes)
    return [2 * q, k, v]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
def test_text_attention(kernels: CompiledEncoder, heads: tuple[int, int, int, int], lengths: tuple[int, ...]) -> None:
    scale = heads[0] ** -0.5
    slopes = np.linspace(0.5, 0.01, heads[2] * heads[3], dtype=np.float32)
    for window, ahead in SIGHTS:
        for bias in (None, slopes):
            x = inputs(lengths, heads)
            got, want = (
                side.text_attention(*x, lengths, scale, window, ahead, bias) for side in (kernels, reference_encoder)
            )
            np.testing.assert_allclose(got, want, atol=ATTENTION)


@pytest.mark.parametrize(("window", "ahead"), SIGHTS)
def test_text_attention_is_torchs(window: int | None, ahead: int | None) -> None:
    lengths = (40, 1, 70)
    q, k, v = inputs(lengths, (16, 16, 2, 3))
    got = reference_encoder.text_attention(q, k, v, lengths, 0.25, window, ahead)
    first = 0
    for length in lengths:
        parts = [torch.tensor(x[first : first + length], dtype=torch.float64).transpose(0, 1) for x in (q, k, v)]
        back = torch.arange(length)[:, None] - torch.arange(length)
        seen = (back < (length if window is None else window)) & (back >= -(length if ahead is None else ahead))
        attend = torch.nn.functional.scaled_dot_product_attention
        want = attend(*parts, attn_mask=seen, scale=0.25, enable_gqa=True).transpose(0, 1)
        np.testing.assert_allclose(got[first : first + length], want.numpy(), atol=1e-6)
        first += length


@pytest.mark.parametrize("window", [None, 20])
def test_a_text_has_the_same_bits_among_others(kernels: CompiledEncoder, window: int | None) -> None:
    lengths, heads = (30, 100, 1, 65), (48, 48, 2, 2)
    q, k, v = inputs(lengths, heads)
    ahead = None if window is None else window - 1
    together = kernels.text_attention(q, k, v, lengths, 0.1, window, ahead)
    first = 0
    for length in lengths:
        rows = slice(first, first + length)
        alone = kernels.text_attention(q[rows], k[rows], v[rows], (length,), 0.1, window, ahead)
        assert alone.tobytes() == together[rows].tobytes()
        first += length


def test_large_scores_do_not_overflow(kernels: CompiledEncoder) -> None:
    q, k, v = inputs((90,), (32, 32, 1, 1))
    got, want = (side.text_attention(1000 * q, k, v, (90,), 1.0) for side in (kernels, reference_encoder))
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("in_place", [False, True])
def test_add_segment_is_exact(kernels: CompiledEncoder, rng, in_place: bool) -> None:
    for n_tokens in (0, 1, 7):
        for width in (1, 16, 33, 200):
            x = rng.standard_normal((n_tokens, width), np.float32)
            table, segments = rng.standard_normal((2, width), np.float32), rng.integers(0, 2, n_tokens)
            got = kernels.add_segment(x, table, segments, in_place)
            np.testing.assert_array_equal(got, reference_encoder.add_segment(x, table, segments))


def test_tanh(compiled: Compiled) -> None:
    x = np.float32([[-1e30, -9, -1, -1e-4, 0, 1e-4, 0.6, 0.7, 3, 1e30, np.nan]])
    np.testing.assert_allclose(CompiledRows(compiled).activate(x, "tanh"), np.tanh(x), rtol=1e-6)
