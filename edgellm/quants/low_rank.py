"""Low-rank matrices in eight bits, as kernels read them beside quantized weights (see `kernels/ops/low_rank_int8.py`).

Each number is d * q. A has a scale d for 32 neighbours of a row, as Q8_0, and B, whose rows are short, one for a row.
But bytes lie in the order in which they are read. Of A, which meets inputs of int8, they are u = q + 128, as in other
blocks; of B, which meets int16, they are q itself.

A matrix is multiplied by a power of two before, so that float16 is fine enough for scales of very small numbers too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.quants import FORMATS
from edgellm.quants.tiles import TILE_ROWS

BYTES = FORMATS["Q8_0"]  # whose integers these are
GROUP = 32  # numbers of a row that share a scale
WORD = 4  # bytes of a row of A that are multiplied together
PAIR = 2  # and of a row of B
PIECE_ROWS = 8  # of A, which meet an input side by side; and columns of B, which are filled up to as many
SCALES_ALIGN = 64  # bytes that the scales of a piece are filled up to
LARGEST_SCALE = 2.0**12  # of a matrix, about


def pack_a(a: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """A, float32 [rank, n_cols] with whole groups, as uint8 [n_pieces, piece_bytes]; and a factor for all of it.

    A piece is 8 rows: word by word of all of them, then the scales, group by group of all of them.
    """
    rank, n_cols = a.shape
    n_pieces, n_groups = -(-rank // PIECE_ROWS), n_cols // GROUP
    rows = np.zeros((n_pieces * PIECE_ROWS, n_cols), np.float32)
    rows[:rank] = a
    q, d, factor = _quantized(rows.reshape(-1, n_groups, GROUP))
    u = (q + 128).astype(np.uint8)
    words = u.reshape(n_pieces, PIECE_ROWS, n_cols // WORD, WORD).transpose(0, 2, 1, 3).reshape(n_pieces, -1)
    scales = d.reshape(n_pieces, PIECE_ROWS, n_groups).transpose(0, 2, 1).copy().view(np.uint8).reshape(n_pieces, -1)
    spare = np.zeros((n_pieces, -scales.shape[1] % SCALES_ALIGN), np.uint8)
    return np.concatenate([words, scales, spare], axis=1), factor


def pack_b(b: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """B transposed, float32 [rank, n_rows], as uint8 [n_tiles, tile_bytes]; and a factor for all of it.

    A tile is 16 rows of B: pair by pair of all of them, then their scales.
    """
    rank, n_rows = b.shape
    n_tiles, n_pieces = -(-n_rows // TILE_ROWS), -(-rank // PIECE_ROWS)
    rows = np.zeros((n_tiles * TILE_ROWS, 1, n_pieces * PIECE_ROWS), np.float32)
    rows[:n_rows, 0, :rank] = b.T
    q, d, factor = _quantized(rows)
    pairs = q.astype(np.int8).reshape(n_tiles, TILE_ROWS, -1, PAIR).transpose(0, 2, 1, 3).copy().view(np.uint8)
    scales = d.reshape(n_tiles, TILE_ROWS).view(np.uint8)
    return np.concatenate([pairs.reshape(n_tiles, -1), scales], axis=1), factor


def _quantized(groups: NDArray[np.float32]) -> tuple[NDArray[np.floating], NDArray[np.float16], float]:
    """Integers of -127 to 127 of the same shape, float16 scales of all groups, and the factor of all of them."""
    largest = np.abs(groups).max(-1).astype(np.float64)
    exponent = np.floor(np.log2(LARGEST_SCALE * 127 / largest.max())) if largest.any() else 0.0
    d = (largest / 127 * 2.0**exponent).astype(np.float16)
    inverse = np.divide(2.0**exponent, d, out=np.zeros(d.shape), where=d > 0)
    return np.clip(np.rint(groups * inverse[..., None]), -127, 127), d, float(2.0**-exponent)
