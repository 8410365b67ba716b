"""Products of float32 matrices that lie in memory in any way: out = a b, in tiles of registers.

A number of the result is summed up over the steps in their order, each by one fused multiply-add, whatever tile it is
in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.kernels.isa import Isa
from edgellm.kernels.staged import F32, Value, Vocabulary

COLUMNS = 2  # registers side by side in a tile


@dataclass(frozen=True)
class Matrix:
    """Where numbers are: (row, column) stands at start + row * row_bytes + column * column_bytes."""

    start: Value
    row_bytes: Value | int
    column_bytes: Value | int = 4


def add_product(v: Vocabulary, a: Matrix, b: Matrix, out: Matrix, n_rows: Value, n_cols: Value, n_steps: Value) -> None:
    """out += a b, for a [n_rows, n_steps], b [n_steps, n_cols]; columns of b and out are neighbours."""
    _product(v, a, b, out, n_rows, n_cols, n_steps, lambda place, lanes: v.f32(place, lanes))


def set_product(v: Vocabulary, a: Matrix, b: Matrix, out: Matrix, n_rows: Value, n_cols: Value, n_steps: Value) -> None:
    """out = a b."""
    _product(v, a, b, out, n_rows, n_cols, n_steps, lambda place, lanes: v.constant(0.0, F32, lanes))


def _product(v: Vocabulary, a: Matrix, b: Matrix, out: Matrix, n_rows: Value, n_cols: Value, n_steps: Value,
             begin: Callable[[Value, int], Value]) -> None:  # fmt: skip
    """begin(address, lanes): what a register of sums starts with."""

    def strip(column: Value, lanes: int, width: int) -> None:
        """All rows of some columns."""
        parts = [column * 4 + part * 4 for part in range(0, width, lanes)]

        def tile(row: Value, height: int) -> None:
            rows = range(height)
            own = a.start + row * a.row_bytes
            places = [out.start + row * out.row_bytes + out.row_bytes * r + part for r in rows for part in parts]

            def step(k: Value, *sums: Value) -> list[Value]:
                at = b.start + k * b.row_bytes
                right = [v.f32(at + part, lanes) for part in parts]
                left = [v.f32(own + a.row_bytes * r + k * a.column_bytes) for r in rows]
                return [v.fma(right[c], left[r], sums[len(parts) * r + c]) for r in rows for c in range(len(parts))]

            totals = v.loop(n_steps, [begin(place, lanes) for place in places], step)
            for place, total in zip(places, totals, strict=True):
                v.store(place, total)

        _in_pieces(v, n_rows, _heights(v.isa), tile)

    lanes = v.isa.lanes
    _in_pieces(v, n_cols, (COLUMNS * lanes, lanes, 4, 1), lambda column, width: strip(column, min(width, lanes), width))


def _heights(isa: Isa) -> tuple[int, ...]:
    """Rows of a tile: with the highest, sums fill most registers. The first as often as there are rows for it, ..."""
    return (12, 4, 1) if isa.n_registers >= 32 else (6, 2, 1)


def _in_pieces(v: Vocabulary, n: Value, sizes: tuple[int, ...], piece: Callable[[Value, int], None]) -> None:
    """piece(first, size) until all n had their turn: of the first size as often as it fits, then of the next."""
    first = v.like(0, n)
    for size in dict.fromkeys(sizes):
        times = (n - first) / size

        def one(i: Value, first: Value = first, size: int = size) -> None:
            piece(first + i * size, size)

        v.repeat(times, one)
        first = first + times * size
