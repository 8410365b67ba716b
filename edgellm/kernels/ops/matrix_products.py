"""Products of float32 matrices that lie in memory in any way, in tiles of registers.

A number of the result is summed up over the steps in their order, each by one fused multiply-add, whatever tile it is
in.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import njit, types

from edgellm.kernels.isa import Isa
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

COLUMNS = 2  # registers side by side in a tile


def _product(v: Vocabulary, a: Value, a_row: Value, a_step: Value, b: Value, b_step: Value, out: Value, out_row: Value,
             n_rows: Value, n_cols: Value, n_steps: Value, adds: Value) -> None:  # fmt: skip
    keeps = v.greater(adds, v.like(0, adds))

    def strip(column: Value, width: int) -> None:
        """All rows of some columns."""
        lanes = min(width, v.isa.lanes)
        zero = v.constant(0.0, F32, lanes)
        parts = [column * 4 + part * 4 for part in range(0, width, lanes)]

        def tile(row: Value, height: int) -> None:
            rows = range(height)
            own = a + row * a_row
            places = [out + (row + r) * out_row + part for r in rows for part in parts]

            def step(k: Value, *sums: Value) -> list[Value]:
                right = [v.f32(b + k * b_step + part, lanes) for part in parts]
                left = [v.f32(own + a_row * r + k * a_step) for r in rows]
                return [v.fma(right[c], left[r], sums[len(parts) * r + c]) for r in rows for c in range(len(parts))]

            first = [v.select(keeps, v.f32(place, lanes), zero) for place in places]
            for place, total in zip(places, v.loop(n_steps, first, step), strict=True):
                v.store(place, total)

        _in_pieces(v, n_rows, _heights(v.isa), tile)

    _in_pieces(v, n_cols, (COLUMNS * v.isa.lanes, v.isa.lanes, 4, 1), strip)


def _heights(isa: Isa) -> tuple[int, ...]:
    """Rows of a tile; sums of the highest fill most registers."""
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


def product(isa: Isa):
    """A function for kernels: out = a b or, where `adds` is 1 rather than 0, out += a b.

    a [n_rows, n_steps] has its numbers anywhere, a_row and a_step bytes apart. The columns of b [n_steps, n_cols] and
    out [n_rows, n_cols] are neighbours, their rows b_step and out_row bytes apart.
    """
    inlined = staged(isa, "void", *["i64"] * 11)(_product)

    # With types given, Numba does not compile it once more for every set of constants among the arguments.
    @njit(types.void(*[types.int64] * 11), error_model="numpy")
    def call(a, a_row, a_step, b, b_step, out, out_row, n_rows, n_cols, n_steps, adds):
        inlined(a, a_row, a_step, b, b_step, out, out_row, n_rows, n_cols, n_steps, adds)

    return call
