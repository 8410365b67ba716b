"""Tiles hold the bytes of 16 rows in another order, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat
from edgellm.quants.tiles import TILE_ROWS, from_tiles, pieces, to_tiles

BLOCKS = [fmt for fmt in FORMATS.values() if not isinstance(fmt, FloatFormat)]
each_format = pytest.mark.parametrize("fmt", BLOCKS, ids=repr)


def where_bytes_go(fmt: BlockFormat, n_rows: int, n_blocks: int) -> np.ndarray:
    """int64 [n_tiles, tile_bytes]: the place in the rows that each byte of the tiles comes from, counted from 1."""
    places = np.arange(1, n_rows * n_blocks * fmt.block_bytes + 1).reshape(n_rows, -1)
    digits = [to_tiles(fmt, (places >> shift & 255).astype(np.uint8)).astype(np.int64) << shift for shift in (0, 8, 16)]
    return sum(digits)


@each_format
def test_the_pieces_of_a_block_are_all_its_bytes(fmt: BlockFormat) -> None:
    found = pieces(fmt)
    assert sorted(piece.start + i for piece in found for i in range(piece.width)) == list(range(fmt.block_bytes))
    ends = [piece.at + piece.width * TILE_ROWS for piece in found]
    assert [piece.at for piece in found] == [0, *ends[:-1]] and ends[-1] == fmt.block_bytes * TILE_ROWS


@each_format
def test_it_is_a_permutation(fmt: BlockFormat) -> None:
    for n_rows, n_blocks in ((16, 1), (32, 3), (64, 2)):
        found = where_bytes_go(fmt, n_rows, n_blocks)
        assert np.array_equal(np.sort(found.reshape(-1)), np.arange(1, found.size + 1))


@each_format
def test_every_piece_lies_row_by_row(fmt: BlockFormat) -> None:
    """What `pieces` says of a tile, which kernels read by, is where `to_tiles` puts the bytes."""
    n_blocks = 3
    found = where_bytes_go(fmt, 2 * TILE_ROWS, n_blocks) - 1
    row_bytes = n_blocks * fmt.block_bytes
    for tile, block, row in ((0, 0, 0), (0, 2, 15), (1, 1, 7)):
        for piece in pieces(fmt):
            at = block * fmt.block_bytes * TILE_ROWS + piece.at + row * piece.width
            first = (tile * TILE_ROWS + row) * row_bytes + block * fmt.block_bytes + piece.start
            assert found[tile, at : at + piece.width].tolist() == list(range(first, first + piece.width))


@each_format
@given(n_rows=st.integers(1, 50), n_blocks=st.integers(1, 4), seed=st.integers(0, 99))
def test_there_and_back(fmt: BlockFormat, n_rows: int, n_blocks: int, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (n_rows, n_blocks * fmt.block_bytes), np.uint8)
    tiles = to_tiles(fmt, raw)
    assert tiles.shape == (-(-n_rows // TILE_ROWS), TILE_ROWS * raw.shape[1])
    assert np.array_equal(from_tiles(fmt, tiles, n_rows), raw)
    assert np.array_equal(
        np.sort(tiles.reshape(-1)), np.sort(np.append(raw, np.zeros(tiles.size - raw.size, np.uint8)))
    )


@each_format
def test_tiles_are_made_in_pieces_too(fmt: BlockFormat) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (40, 2 * fmt.block_bytes), np.uint8)
    whole, out = to_tiles(fmt, raw), np.zeros((3, TILE_ROWS * raw.shape[1]), np.uint8)
    to_tiles(fmt, raw[:32], out[:2])
    to_tiles(fmt, raw[32:], out[2:])
    assert np.array_equal(out, whole)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_single_floats_have_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} has no tiles"):
        to_tiles(FORMATS[name], np.zeros((16, 64), np.uint8))
