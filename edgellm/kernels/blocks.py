"""How a block format reads its blocks into registers: those of several rows at once, at the same place in each.

Weights and scales lie differently in registers, for they are used differently:

- *Weights* are multiplied as bytes, and four neighbours meet in one lane of 32 bits. A register of them consists of
  quarters of 16 bytes, each of another row; of 32 neighbouring weights, the first 16 of all rows come first, and then
  the second 16 of all. Whatever is done byte by byte, and what looks up bytes in a table, needs to know nothing of it.
- *Numbers* (scales, minima) come one row in a lane, and those of several groups one behind the other. So a scale of a
  group and what a row has summed up for it meet in the same lane.

For a single row both are simply in the order of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.kernels.staged import F16, I8, I16, I32, Value, Vocabulary

QUARTER = 16  # bytes of one row in a register of weights


class BlockReader:
    """The blocks at `addresses`, one for each row; `at` counts bytes from the start of a block."""

    def __init__(self, v: Vocabulary, addresses: Sequence[Value]) -> None:
        self.v, self.addresses = v, addresses

    # --- weights ------------------------------------------------------------------------------------------

    def packed(self, at: int, n: int) -> Value:
        """n bytes of every row, 16 or 32."""
        starts = range(at, at + n, QUARTER)
        return self.v.concat(*(self.v.load(row + start, I8, QUARTER) for start in starts for row in self.addresses))

    def bits(self, at: int) -> Value:
        """32 single bits of every row, lowest first, as bytes of 0 or 1."""
        word = self.word(at)
        return self.v.concat(*(self.v.bits(half.trunc(I16)) for half in (word, word >> 16)))

    # --- numbers ------------------------------------------------------------------------------------------

    def byte(self, at: int) -> Value:
        """An unsigned byte, as an integer of 32 bits."""
        return self.v.vector_of([self.v.load(address + at, I8) for address in self.addresses]).zext(I32)

    def word(self, at: int) -> Value:
        """A 32-bit word."""
        return self.v.vector_of([self.v.load(address + at, I32) for address in self.addresses])

    def half(self, at: int) -> Value:
        """A float16, as float32."""
        halves = self.v.vector_of([self.v.load(address + at, I16) for address in self.addresses])
        return self.v.f16_to_f32(halves.bitcast(F16))

    def halves(self, at: int) -> tuple[Value, Value]:
        """Two neighbouring float16 numbers."""
        word = self.word(at)
        low, high = (part.trunc(I16).bitcast(F16) for part in (word, word >> 16))
        return self.v.f16_to_f32(low), self.v.f16_to_f32(high)

    def bytes(self, at: int, n: int) -> Value:
        """n neighbouring unsigned bytes (4, 8 or 16), as integers of 32 bits."""
        words = [self.word(at + start) for start in range(0, n, 4)]
        return self.v.concat(*((word >> 8 * i) & 255 for word in words for i in range(4)))

    def signed_bytes(self, at: int, n: int) -> Value:
        """The same for signed bytes."""
        return (self.bytes(at, n) ^ 128) - 128
