"""C += A B in float32, a tile of C in registers at a time: what goes backwards through linear layers.

Lanes hold neighbouring columns of C. A sum goes through k in its order, one fused multiply-add after the other,
whatever tile it falls into: so a result's bits do not depend on the shape of C.
"""

from __future__ import annotations

from typing import NamedTuple

from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, Value, Vocabulary

# Rows of a tile, tallest first: what one leaves over, the next takes. So many registers of sums as six rows have, with
# `_tile_widths`, leave room for a piece of B and one number of A.
_TILE_ROWS = (6, 4, 2, 1)
AT_ONCE = 4  # products of a sum between two looks at whether it is at its end


class Matrix(NamedTuple):
    """Float32 in memory: an address, and the bytes from one row to the next and from one column to the next."""

    address: Value
    row_bytes: Value
    column_bytes: Value

    def at(self, row: Value | int, column: Value | int) -> Value:
        return self.address + self.row_bytes * row + self.column_bytes * column

    def part(self, row: Value | int, column: Value | int) -> Matrix:
        """From a row and a column on."""
        return self._replace(address=self.at(row, column))


def rows_of(v: Vocabulary, address: Value, row_bytes: Value) -> Matrix:
    """A matrix whose rows are each in one piece."""
    return Matrix(address, row_bytes, v.like(4, address))


def columns_of(v: Vocabulary, address: Value, column_bytes: Value) -> Matrix:
    """A matrix whose columns are each in one piece."""
    return Matrix(address, v.like(4, address), column_bytes)


def add_products(
    v: Vocabulary, c: Matrix, a: Matrix, b: Matrix, n_rows: Value, n_cols: Value, n: Value, starts_at_0: Value,
    scale: Value | None = None,
) -> None:  # fmt: skip
    """c [n_rows, n_cols] += scale * a [n_rows, n] b [n, n_cols], for rows of c and b in one piece.

    n_cols:       a multiple of ROW_ALIGN.
    starts_at_0:  1: what c holds does not count, 0: it is added to.
    scale:        float32; None is 1.
    """
    first: Value | int = 0
    for width in _tile_widths(v):
        n_strips = (n_cols - first) / width

        def strip(i: Value, first: Value | int = first, width: int = width) -> None:
            column = i * width + first
            _add_to_strip(v, c.part(0, column), a, b.part(0, column), n_rows, width, n, starts_at_0, scale)

        v.repeat(n_strips, strip)
        first = n_strips * width + first


def _tile_widths(v: Vocabulary) -> list[int]:
    """Columns of a tile, widest first: of registers as many as six rows leave room for."""
    widest = v.isa.n_registers // 8 * v.isa.lanes
    return [widest, ROW_ALIGN] if widest > ROW_ALIGN else [widest]


def _add_to_strip(
    v: Vocabulary, c: Matrix, a: Matrix, b: Matrix, n_rows: Value, width: int, n: Value, starts_at_0: Value,
    scale: Value | None,
) -> None:  # fmt: skip
    """The same for `width` columns: all rows in turn, while the strip of b stays in the first level cache."""
    first: Value | int = 0
    for height in _TILE_ROWS:
        n_tiles = (n_rows - first) / height

        def tile(i: Value, first: Value | int = first, height: int = height) -> None:
            row = i * height + first
            _add_to_tile(v, c.part(row, 0), a.part(row, 0), b, height, width, n, starts_at_0, scale)

        v.repeat(n_tiles, tile)
        first = n_tiles * height + first


def _add_to_tile(
    v: Vocabulary, c: Matrix, a: Matrix, b: Matrix, height: int, width: int, n: Value, starts_at_0: Value,
    scale: Value | None,
) -> None:  # fmt: skip
    lanes = v.isa.lanes
    columns = range(0, width, lanes)
    places = [c.at(row, column) for row in range(height) for column in columns]
    fresh, zero = v.greater(starts_at_0, v.like(0, starts_at_0)), v.constant(0.0, F32, lanes)

    def body(k: Value, *totals: Value) -> list[Value]:
        registers = [v.f32(b.at(k, column), lanes) for column in columns]
        results = []
        for row in range(height):
            number = v.f32(a.at(row, k))
            if scale is not None:
                number = number * scale
            of_row = totals[row * len(registers) :]
            results += [v.fma(register, number, total) for register, total in zip(registers, of_row, strict=False)]
        return results

    before = [v.select(fresh, zero, v.f32(place, lanes)) for place in places]
    totals = v.loop(n, before, body, at_once=AT_ONCE)
    for place, total in zip(places, totals, strict=True):
        v.store(place, total)
