"""Low-rank matrices in eight bits: what is packed, and where."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.quants.low_rank import GROUP, PAIR, PIECE_ROWS, WORD, pack_a, pack_b

RANKS = (1, 4, 8, 9, 21, 33)


def unpacked_a(packed: np.ndarray, factor: float, rank: int, n_cols: int) -> np.ndarray:
    """float64 [rank, n_cols], by looking each number up."""
    out = np.empty((rank, n_cols))
    for r, c in np.ndindex(out.shape):
        piece, row = packed[r // PIECE_ROWS], r % PIECE_ROWS
        u = piece[(c // WORD * PIECE_ROWS + row) * WORD + c % WORD]
        scales = piece[n_cols * PIECE_ROWS :].view(np.float16)
        out[r, c] = (float(u) - 128) * float(scales[c // GROUP * PIECE_ROWS + row])
    return out * factor


def unpacked_b(packed: np.ndarray, factor: float, rank: int, n_rows: int) -> np.ndarray:
    """float64 [rank, n_rows], likewise."""
    out = np.empty((rank, n_rows))
    width = -(-rank // PIECE_ROWS) * PIECE_ROWS
    for r, row in np.ndindex(out.shape):
        tile, lane = packed[row // 16], row % 16
        q = tile.view(np.int8)[(r // PAIR * 16 + lane) * PAIR + r % PAIR]
        out[r, row] = float(q) * float(tile[width * 16 :].view(np.float16)[lane])
    return out * factor


def check(found: np.ndarray, x: np.ndarray, largest: np.ndarray) -> None:
    """Within half a step of what 127 steps to the largest neighbour are, and what the scale is rounded by."""
    assert (np.abs(found - x) <= largest * (0.5 / 127 + 2.0**-10)).all()


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-30, 1e4])
@pytest.mark.parametrize("rank", RANKS)
def test_a(rank: int, size: float) -> None:
    rng = np.random.default_rng(rank)
    x = (rng.standard_normal((rank, 96)) * size * 10.0 ** rng.integers(-2, 1, (rank, 1))).astype(np.float32)
    packed, factor = pack_a(x)
    assert packed.shape == (-(-rank // 8), -(-(96 * 8 + 3 * 16) // 64) * 64)
    largest = np.abs(x).reshape(rank, 3, 32).max(-1).repeat(32, axis=1)
    check(unpacked_a(packed, factor, rank, 96), x, largest)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-30, 1e4])
@pytest.mark.parametrize("rank", RANKS)
def test_b(rank: int, size: float) -> None:
    rng = np.random.default_rng(rank)
    x = (rng.standard_normal((rank, 40)) * size * 10.0 ** rng.integers(-2, 1, (1, 40))).astype(np.float32)
    packed, factor = pack_b(x)
    assert packed.shape == (3, 128 * -(-rank // 8) + 32)
    largest = np.broadcast_to(np.abs(x).max(0), x.shape)
    check(unpacked_b(packed, factor, rank, 40), x, largest)


def test_zeros() -> None:
    """And rows or columns that only fill up are zeros too."""
    assert set(pack_a(np.zeros((3, 32), np.float32))[0].reshape(-1)) <= {0, 128}
    assert not pack_b(np.zeros((3, 20), np.float32))[0].any()
    packed, factor = pack_a(np.ones((3, 32), np.float32))
    np.testing.assert_allclose(unpacked_a(packed, factor, 8, 32), [[1.0] * 32] * 3 + [[0.0] * 32] * 5, rtol=1e-3)
