"""How a block format reads a block of a tile: all 16 rows of it, word by word (see `quants.tiles`).

`BlockFormat.unpack` is written once, for registers; what it gets here are `Registers`, several side by side that it
takes for a long one. So no code is made that puts registers together and takes them apart again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from edgellm.kernels.staged import F16, I8, I16, I32, Value, Vocabulary
from edgellm.quants import BlockFormat
from edgellm.quants.tiles import TILE_ROWS, pieces


class Registers:
    """Registers side by side. What is done to them is done to each; a single one beside them meets each of them."""

    def __init__(self, parts: Sequence[Value]) -> None:
        self.parts = list(parts)

    def _with(self, other: Any, operation: Callable[[Any, Any], Value]) -> Registers:
        others = other.parts if isinstance(other, Registers) else [other]
        others = others * (len(self.parts) // len(others))
        return Registers([operation(part, one) for part, one in zip(self.parts, others, strict=True)])

    def __and__(self, other: Any) -> Registers:
        return self._with(other, operator.and_)

    def __or__(self, other: Any) -> Registers:
        return self._with(other, operator.or_)

    def __xor__(self, other: Any) -> Registers:
        return self._with(other, operator.xor)

    def __lshift__(self, n_bits: int) -> Registers:
        return self._with(n_bits, operator.lshift)

    def __rshift__(self, n_bits: int) -> Registers:
        return self._with(n_bits, operator.rshift)

    def __sub__(self, other: Any) -> Registers:
        return self._with(other, operator.sub)

    def __mul__(self, other: Any) -> Registers:
        return self._with(other, operator.mul)

    def __neg__(self) -> Registers:
        return Registers([-part for part in self.parts])

    def to_f32(self) -> Registers:
        """From signed integers."""
        return Registers([part.to_f32() for part in self.parts])


class TileVocabulary:
    """The words of `quants.protocols.Vocabulary` that blocks are unpacked with, on registers side by side."""

    def __init__(self, v: Vocabulary) -> None:
        self.v = v

    def concat(self, *several: Registers) -> Registers:
        return Registers([part for one in several for part in one.parts])

    def lookup(self, table: Sequence[int], indices: Registers) -> Registers:
        return Registers([self.v.lookup(table, part) for part in indices.parts])

    def power_of_two(self, e: Registers) -> Registers:
        return Registers([self.v.power_of_two(part) for part in e.parts])


class TileReader:
    """The block of some rows of a tile at `address`, by default all; `at` counts bytes of a row's block, as in files.

    Weights come as words, a register for each: four bytes of the first row, of the next, ... Numbers are n_rows lanes.
    """

    def __init__(
        self, v: Vocabulary, fmt: BlockFormat, address: Value, first_row: int = 0, n_rows: int = TILE_ROWS
    ) -> None:
        self.v, self.fmt, self.address = v, fmt, address
        self.first_row, self.n_rows = first_row, n_rows
        self._words: Any = TileVocabulary(v)
        self._pieces = {piece.start: piece for piece in pieces(fmt)}

    def unpack(self, group: int) -> list[Value]:
        """A group of weights as eight registers of unsigned bytes."""
        return self.fmt.unpack(self._words, self, group).parts

    def unpack_scales(self) -> tuple[list[Value], list[Value]]:
        """The scales of the block, each for all rows, and likewise the biases; none where there is a zero point."""
        scales, biases = self.fmt.unpack_scales(self._words, self)
        return scales.parts, [] if biases is None else biases.parts

    # --- words of `quants.protocols.Block` ----------------------------------------------------------------------

    def packed(self, at: int, n: int) -> Registers:
        first = self.address + (self._pieces[at].at + 4 * self.first_row)
        return Registers([self.v.load(first + i * TILE_ROWS, I8, 4 * self.n_rows) for i in range(0, n, 4)])

    def bits(self, at: int) -> Registers:
        """Four bits of a word are spread over its bytes by one multiplication: bit i to place 8 i."""
        (word,) = self.word(at).parts
        fours = [(word >> 4 * i) & 15 for i in range(8)]
        return Registers([((four * 0x00204081) & 0x01010101).bitcast(I8) for four in fours])

    def byte(self, at: int) -> Registers:
        return Registers([self._integer(at, I8).zext(I32)])

    def word(self, at: int) -> Registers:
        if self._pieces[at].width == 4:
            return Registers([self._integer(at, I32)])
        low, high = (self._integer(at + i, I16).zext(I32) for i in (0, 2))
        return Registers([low | high << 16])

    def half(self, at: int) -> Registers:
        return Registers([self.v.f16_to_f32(self._integer(at, I16).bitcast(F16))])

    def halves(self, at: int) -> tuple[Registers, Registers]:
        return self.half(at), self.half(at + 2)

    def bytes(self, at: int, n: int) -> Registers:
        return Registers([self._integer(at + i, I8).zext(I32) for i in range(n)])

    def signed_bytes(self, at: int, n: int) -> Registers:
        return Registers([self._integer(at + i, I8).sext(I32) for i in range(n)])

    def _integer(self, at: int, element: Any) -> Value:
        """An integer of every row that is a piece of its own."""
        piece = self._pieces[at]
        assert piece.width * 8 == element.width, f"a piece of {piece.width} bytes is no {element}"
        return self.v.load(self.address + (piece.at + piece.width * self.first_row), element, self.n_rows)
