"""Tiles: the bytes of 16 rows of weights, laid out in the order in which kernels read them.

A row of a file holds its blocks one after the other, so a kernel that multiplies 16 rows side by side reads in 16
places, and turns what it finds until each row has a lane of its registers. In a tile that is done once, ahead. It holds
the blocks of 16 rows column by column; of 16 blocks it holds piece after piece, as `BlockFormat.in_tiles` says, and of
each piece the bytes of row 0, of row 1, ... So a piece of four bytes is a register of 16 lanes.

    row 0   d scales w0 w1 w2 ...          tile   d d d ... d   (16 times)
    row 1   d scales w0 w1 w2 ...   ──►           scale 0 of all, scale 1 of all, ...
    ...                                           w0 w0 ... w0, w1 w1 ... w1, ...

It is a permutation: no byte is added, but for rows of zeros that fill up the last tile of a matrix.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgellm.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.quants.base import BlockFormat

TILE_ROWS = 16


class Piece(NamedTuple):
    """Neighbouring bytes of a block that stay together in a tile, and where those of the first row begin there."""

    start: int
    width: int
    at: int


@cache
def pieces(fmt: BlockFormat) -> tuple[Piece, ...]:
    """The pieces of a block of a format, in the order of a tile."""
    found: list[Piece] = []
    at = 0
    for name, width in fmt.in_tiles:
        first, size = _field(fmt, name)
        for start in range(first, first + size, width):
            found.append(Piece(start, width, at))
            at += width * TILE_ROWS
    return tuple(found)


def _field(fmt: BlockFormat, name: str) -> tuple[int, int]:
    """Where a field of a block begins, and its bytes."""
    fields = fmt.layout.fields
    assert fields is not None
    return fields[name][1], fields[name][0].itemsize


def n_tiles(n_rows: int) -> int:
    return -(-n_rows // TILE_ROWS)


def to_tiles(fmt: BlockFormat, raw: NDArray[np.uint8], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """uint8 [n_rows, row_bytes] -> uint8 [n_tiles, 16 * row_bytes]; `out` is filled where it is given.

    UsageError for a format without tiles, such as one of single floats.
    """
    _check(fmt)
    n_rows, row_bytes = raw.shape
    count, n_whole = n_tiles(n_rows), n_rows // TILE_ROWS
    if out is None:
        out = np.empty((count, TILE_ROWS * row_bytes), np.uint8)
    _permute(fmt, raw[: n_whole * TILE_ROWS], out[:n_whole])
    if count > n_whole:
        last = np.zeros((TILE_ROWS, row_bytes), np.uint8)
        last[: n_rows - n_whole * TILE_ROWS] = raw[n_whole * TILE_ROWS :]
        _permute(fmt, last, out[n_whole:])
    return out


def from_tiles(fmt: BlockFormat, tiles: NDArray[np.uint8], n_rows: int) -> NDArray[np.uint8]:
    """The inverse of `to_tiles`: uint8 [n_rows, row_bytes]."""
    _check(fmt)
    count, tile_bytes = tiles.shape
    raw = np.empty((count * TILE_ROWS, tile_bytes // TILE_ROWS), np.uint8)
    _permute(fmt, raw, tiles, backwards=True)
    return raw[:n_rows]


def _check(fmt: BlockFormat) -> None:
    if not fmt.in_tiles:
        raise UsageError(f"{fmt} has no tiles")


def _permute(fmt: BlockFormat, raw: NDArray[np.uint8], tiles: NDArray[np.uint8], backwards: bool = False) -> None:
    """Fill the tiles from rows [n_tiles * 16, row_bytes], or the rows from tiles; field by field."""
    count, n_blocks = len(tiles), raw.shape[1] // fmt.block_bytes
    blocks = raw.reshape(count, TILE_ROWS, n_blocks, fmt.block_bytes)
    laid = tiles.reshape(count, n_blocks, TILE_ROWS * fmt.block_bytes)
    at = 0
    for name, width in fmt.in_tiles:
        (first, size), piece = _field(fmt, name), f"<u{width}"
        rows = blocks[..., first : first + size].view(piece)  # [tile, row, block, piece]
        field = laid[..., at : at + size * TILE_ROWS].view(piece).reshape(count, n_blocks, size // width, TILE_ROWS)
        if backwards:
            rows[...] = field.transpose(0, 3, 1, 2)
        else:
            field[...] = rows.transpose(0, 2, 3, 1)
        at += size * TILE_ROWS
