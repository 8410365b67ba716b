"""How a block format reads a block of a tile: all 16 rows of it, word by word (see `quants.tiles`).

`BlockFormat.unpack` is written once, for registers; what it gets here are `Registers`, several side by side that it
takes for a long one. So no code is made that puts registers together and takes them apart again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

from edgellm.kernels.staged import F16, I8, I16, I32, Value, Vocabulary
from edgellm.quants import BlockFormat
from edgellm.quants.tiles import TILE_ROWS, pieces


class Registers(Sequence[Value]):
    """Registers side by side. What is done to them is done to each; a single one beside them meets each of them.

    Each is loaded and computed where it is asked for, and again each time: of a block of a tile, far more numbers are
    needed than registers can hold.
    """

    def __init__(self, parts: Iterable[Callable[[], Value]]) -> None:
        self._parts = list(parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, i: Any) -> Any:
        return Registers(self._parts[i]) if isinstance(i, slice) else self._parts[i]()

    def each(self, operation: Callable[[Value], Value]) -> Registers:
        return Registers([partial(_computed, operation, part) for part in self._parts])

    def joined(self, other: Registers) -> Registers:
        """Those of another behind them."""
        return Registers(self._parts + other._parts)

    def _with(self, other: Any, operation: Callable[[Any, Any], Value]) -> Registers:
        if not isinstance(other, Registers):
            return self.each(lambda part: operation(part, other))
        others = other._parts * (len(self) // len(other))
        pairs = zip(self._parts, others, strict=True)
        return Registers([partial(_computed, operation, part, one) for part, one in pairs])

    def __and__(self, other: Any) -> Registers:
        return self._with(other, operator.and_)

    def __or__(self, other: Any) -> Registers:
        return self._with(other, operator.or_)

    def __xor__(self, other: Any) -> Registers:
        return self._with(other, operator.xor)

    def __lshift__(self, n_bits: int) -> Registers:
        return self._with(n_bits, operator.lshift)

    def __rshift__(self, n_bits: int | GroupNumber) -> Registers:
        """By a group's number, bytes take in bits of their neighbours: who unpacks so wants single bits of them."""
        if isinstance(n_bits, GroupNumber):
            amount = (n_bits.k * n_bits.step + n_bits.known).trunc(I32)
            return self.each(lambda part: (part.bitcast(I32) >> amount).bitcast(I8))
        return self._with(n_bits, operator.rshift)

    def __sub__(self, other: Any) -> Registers:
        return self._with(other, operator.sub)

    def __mul__(self, other: Any) -> Registers:
        return self._with(other, operator.mul)

    def __neg__(self) -> Registers:
        return self.each(operator.neg)

    def to_f32(self) -> Registers:
        """From signed integers."""
        return self.each(lambda part: part.to_f32())


def _computed(operation: Callable[..., Value], *parts: Callable[[], Value]) -> Value:
    return operation(*(part() for part in parts))


def _held(value: Value) -> Registers:
    """A single one that is there already."""
    return Registers([lambda: value])


class TileVocabulary:
    """The words of `quants.protocols.Vocabulary` that blocks are unpacked with, on registers side by side."""

    def __init__(self, v: Vocabulary) -> None:
        self.v = v

    def concat(self, *several: Registers) -> Registers:
        return reduce(Registers.joined, several)

    def lookup(self, table: Sequence[int], indices: Registers) -> Registers:
        return indices.each(lambda part: self.v.lookup(table, part))

    def power_of_two(self, e: Registers) -> Registers:
        return e.each(self.v.power_of_two)


class GroupNumber:
    """The number of a group where a loop goes over `step` of them at a time: known + step * k, in the loop's round k.

    Formats compute with it as they do with numbers of which all is known (`BlockFormat.unpack`).
    """

    def __init__(self, known: int, step: int, k: Value) -> None:
        self.known, self.step, self.k = known, step, k

    def __add__(self, n: int) -> GroupNumber:
        return GroupNumber(self.known + n, self.step, self.k)

    def __mul__(self, n: int) -> GroupNumber:
        return GroupNumber(self.known * n, self.step * n, self.k)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, n: int) -> GroupNumber:
        return GroupNumber(self.known // n, self._step_of(n), self.k)

    def __mod__(self, n: int) -> int:
        """The same in each round."""
        self._step_of(n)
        return self.known % n

    def __divmod__(self, n: int) -> tuple[GroupNumber, int]:
        return self // n, self % n

    def _step_of(self, n: int) -> int:
        if self.step % n:
            raise ValueError(f"a loop over {self.step} groups at a time does not know what they are modulo {n}")
        return self.step // n


class TileReader:
    """The block of a tile at `address`; `at` counts bytes of a row's block, as in files.

    Weights come as words, each as a register: four bytes of the first row, of the next, ... Numbers are 16 lanes.
    """

    def __init__(self, v: Vocabulary, fmt: BlockFormat, address: Value) -> None:
        self.v, self.fmt, self.address = v, fmt, address
        self._words: Any = TileVocabulary(v)
        self._pieces = {piece.start: piece for piece in pieces(fmt)}
        self._number: Callable[[int], Any] = int

    def from_group(self, k: Value, step: int) -> TileReader:
        """One whose groups are counted from group k * step on."""
        reader = TileReader(self.v, self.fmt, self.address)
        reader._number = lambda group: GroupNumber(group, step, k)
        return reader

    def unpack(self, group: int) -> Registers:
        """A group of weights as eight registers of unsigned bytes."""
        return self.fmt.unpack(self._words, self, self._number(group))

    def unpack_scales(self) -> tuple[Registers, Registers]:
        """The scales of the block, each for all rows, and likewise the biases; none where there is a zero point."""
        scales, biases = self.fmt.unpack_scales(self._words, self)
        return scales, Registers([]) if biases is None else biases

    # --- words of `quants.protocols.Block` ----------------------------------------------------------------------

    def packed(self, at: int | GroupNumber, n: int) -> Registers:
        if isinstance(at, GroupNumber):  # within a field, a byte further on in a block is 16 bytes further on in a tile
            first = self.address + at.k * (at.step * TILE_ROWS) + self._pieces[at.known].at
        else:
            first = self.address + self._pieces[at].at
        places = [first + i * TILE_ROWS for i in range(0, n, 4)]
        return Registers([partial(self.v.load, place, I8, 4 * TILE_ROWS) for place in places])

    def bits(self, at: int) -> Registers:
        """Four bits of a word are spread over its bytes by one multiplication: bit i to place 8 i."""
        (word,) = self.word(at)

        def four(i: int) -> Value:
            return ((((word >> 4 * i) & 15) * 0x00204081) & 0x01010101).bitcast(I8)

        return Registers([partial(four, i) for i in range(8)])

    def byte(self, at: int) -> Registers:
        return self.bytes(at, 1)

    def word(self, at: int) -> Registers:
        if self._pieces[at].width == 4:
            return _held(self._integer(at, I32))
        low, high = (self._integer(at + i, I16).zext(I32) for i in (0, 2))
        return _held(low | high << 16)

    def half(self, at: int) -> Registers:
        return _held(self.v.f16_to_f32(self._integer(at, I16).bitcast(F16)))

    def halves(self, at: int) -> tuple[Registers, Registers]:
        return self.half(at), self.half(at + 2)

    def bytes(self, at: int, n: int) -> Registers:
        return self._bytes(at, n).each(lambda byte: byte.zext(I32))

    def signed_bytes(self, at: int, n: int) -> Registers:
        return self._bytes(at, n).each(lambda byte: byte.sext(I32))

    def _bytes(self, at: int, n: int) -> Registers:
        return Registers([partial(self._integer, at + i, I8) for i in range(n)])

    def _integer(self, at: int, element: Any) -> Value:
        """An integer of every row that is a piece of its own."""
        piece = self._pieces[at]
        assert piece.width * 8 == element.width, f"a piece of {piece.width} bytes is no {element}"
        return self.v.load(self.address + piece.at, element, TILE_ROWS)
