"""Tiles of attention: how many rows meet what is loaded, and what is asked for ahead of its use."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.isa import Isa
from edgellm.kernels.records import ATTENTION_TILE_ROWS, SPAN_TOKENS
from edgellm.kernels.staged import Value, Vocabulary

HEIGHTS = (ATTENTION_TILE_ROWS, 4, 3, 2, 1)  # rows of a tile: the first as often as there are rows for it, ...
SPAN_ROW_BYTES = 4 * SPAN_TOKENS


def columns_of(isa: Isa) -> int:
    """Registers side by side in a tile: with the highest tile, they leave some for what is multiplied."""
    return 4 if isa.n_registers >= 32 else 2


def tiles(v: Vocabulary, n_rows: Value, tile: Callable[[Value, int], None]) -> None:
    """tile(first row, height) until all rows had their turn."""
    first = v.like(0, n_rows)
    for height in HEIGHTS:

        def one(i: Value, first: Value = first, height: int = height) -> None:
            tile(first + i * height, height)

        n = (n_rows - first) / height
        v.repeat(n, one)
        first = first + n * height


def prefetch_ahead(v: Vocabulary, n_rows: int, address: Value, n_bytes: int) -> None:
    """For few rows: many rows wait for arithmetic, not for memory."""
    if n_rows < ATTENTION_TILE_ROWS:
        for line in range(0, n_bytes, 64):
            v.prefetch(address + line, level=1)
