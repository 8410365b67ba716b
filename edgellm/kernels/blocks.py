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

from edgellm.kernels.staged import F16, I8, I16, I32, I64, Value, Vocabulary

QUARTER = 16  # bytes of one row in a register of weights
SETS = 4  # a register holds quarters of every SETS-th row: so those of all sets meet in order when they are summed


def by_quarters(v: Vocabulary, a: Value, b: Value, lanes: list[int]) -> Value:
    """In every quarter of the result, these lanes of the same quarters of a (0 to 3) and b (4 to 7)."""
    return v.shuffle(a, b, [start + lane + (a.n - 4) * (lane >= 4) for start in range(0, a.n, 4) for lane in lanes])


def transpose_quarters(v: Vocabulary, sets: list[Value]) -> list[Value]:
    """The four words of all quarters of int32 registers, one for each set: each word of all rows, in their order."""
    words = []
    for lanes in ([0, 4, 1, 5], [2, 6, 3, 7]):
        a, b = (by_quarters(v, sets[s], sets[s + 1], lanes) for s in (0, 2))
        words += [by_quarters(v, a, b, [0, 1, 4, 5]), by_quarters(v, a, b, [2, 3, 6, 7])]
    return words


class BlockReader:
    """The blocks at `addresses`, one for each row; `at` counts bytes from the start of a block."""

    def __init__(self, v: Vocabulary, addresses: Sequence[Value], block_bytes: int) -> None:
        self.v, self.addresses, self.block_bytes = v, addresses, block_bytes
        self._quarters: dict[int, list[Value]] = {}

    # --- weights ------------------------------------------------------------------------------------------

    def packed(self, at: int, n: int) -> Value:
        """n bytes of every row, 16 or 32."""
        v, rows = self.v, self.addresses
        if n == 2 * QUARTER and len(rows) == 4:
            # Loads of 32 bytes, whose halves are sorted after: half as many inserts.
            a, b = (v.concat(*(v.load(row + at, I64, 4) for row in pair)) for pair in (rows[:2], rows[2:]))
            halves = ([start + i for start in range(first, 16, 4) for i in (0, 1)] for first in (0, 2))
            return v.concat(*(v.shuffle(a, b, half) for half in halves)).bitcast(I8)
        starts = range(at, at + n, QUARTER)
        return v.concat(*(v.load(row + start, I8, QUARTER) for start in starts for row in rows))

    def bits(self, at: int) -> Value:
        """32 single bits of every row, lowest first, as bytes of 0 or 1."""
        word = self.word(at)
        if word.n == 1:  # its halves are in order already
            return self.v.bits(word)
        return self.v.concat(*(self.v.bits(half.trunc(I16)) for half in (word, word >> 16)))

    # --- numbers ------------------------------------------------------------------------------------------

    def byte(self, at: int) -> Value:
        """An unsigned byte, as an integer of 32 bits."""
        return self.word(at) & 255

    def word(self, at: int) -> Value:
        """A 32-bit word.

        Of several rows, the 16 bytes around it are read and turned, for its neighbours are often wanted as well; and
        even for one word that is less work than putting each row's into its lane.
        """
        v, rows = self.v, self.addresses
        if len(rows) % SETS:
            return v.vector_of([v.load(row + at, I32) for row in rows])
        last = self.block_bytes - QUARTER
        start = min(at - at % QUARTER + at % 4, last - (last - at) % 4)
        if start not in self._quarters:
            sets = [v.concat(*(v.load(row + start, I32, 4) for row in rows[s::SETS])) for s in range(SETS)]
            self._quarters[start] = transpose_quarters(v, sets)
        return self._quarters[start][(at - start) // 4]

    def half(self, at: int) -> Value:
        """A float16, as float32."""
        is_last = at + 4 > self.block_bytes
        word = self.word(at - 2) >> 16 if is_last else self.word(at)
        return self.v.f16_to_f32(word.trunc(I16).bitcast(F16))

    def halves(self, at: int) -> tuple[Value, Value]:
        """Two neighbouring float16 numbers."""
        pairs = self.word(at).bitcast(I16)
        firsts_first = self.v.shuffle(pairs, pairs, [*range(0, pairs.n, 2), *range(1, pairs.n, 2)])
        return self.v.halves(self.v.f16_to_f32(firsts_first.bitcast(F16)))

    def bytes(self, at: int, n: int) -> Value:
        """n neighbouring unsigned bytes (4, 8 or 16), as integers of 32 bits."""
        words = [self.word(at + start) for start in range(0, n, 4)]
        return self.v.concat(*((word >> 8 * i) & 255 for word in words for i in range(4)))

    def signed_bytes(self, at: int, n: int) -> Value:
        """The same for signed bytes."""
        return (self.bytes(at, n) ^ 128) - 128
