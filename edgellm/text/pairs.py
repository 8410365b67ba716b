"""The symbols of byte-pair encoding as numbers, and which two of them may be joined.

A token's number is its id. What merging makes or begins with and is no token has a number behind them. A vocabulary
has hundreds of thousands of pairs, a text uses a few of them: each is looked up by its spelling when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

HALF = 32  # two numbers stand in one of 64 bits
LOWER = (1 << HALF) - 1
EDGE = -1  # stands before and after words, and joins with nothing
NEVER = 1 << 62  # what stands for a pair that is not joined: a rank behind all others
_SLOT_BITS = 17  # pairs that are kept, a power of two
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number, for Fibonacci hashing (Knuth, volume 3, section 6.4)


class Pairs:
    """What may be joined, when and to what. A pair is described by one number: `rank << HALF | made`, or NEVER.

    tokens:    of a vocabulary, by their ids.
    token_id:  the id of a symbol that is a token of it, or None.
    rank:      of two neighbours, from 0 to 2**30 - 1 (the lowest are joined first); None where they are not joined.
    symbol:    of a character of the words that are merged.
    """

    def __init__(
        self,
        tokens: list[bytes],
        token_id: Callable[[bytes], int | None],
        rank: Callable[[bytes, bytes], int | None],
        symbol: Callable[[str], bytes],
    ) -> None:
        self.rank = rank
        self.lock = Lock()  # of who uses them
        self.symbols = tokens.copy()  # by their numbers
        self._token_id = token_id
        self._symbol = symbol
        self._others: dict[bytes, int] = {}
        self._of_char = np.zeros(0x110000, np.int32)  # one more than the number of a character; 0 until it is met
        # A cache of one place for each pair: who comes later takes it.
        self._keys = np.full(1 << _SLOT_BITS, -1)
        self._values = np.zeros(1 << _SLOT_BITS, np.int64)

    def numbers(self, text: str) -> Numbers:
        """The symbols of a text's characters."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found = self._of_char[codes]
        if not found.all():
            for code in np.unique(codes[found == 0]).tolist():
                self._of_char[code] = self.number(self._symbol(chr(code))) + 1
            found = self._of_char[codes]
        return found.astype(np.int64) - 1

    def number(self, symbol: bytes) -> int:
        """The number of a symbol."""
        found = self._token_id(symbol)
        if found is None:
            found = self._others.get(symbol)
        if found is None:
            found = self._others[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        return found

    def find(self, left: Numbers, right: Numbers) -> Numbers:
        """Each of some pairs."""
        keys = left << HALF | right
        slots = (keys * _SPREAD) >> (64 - _SLOT_BITS) & ((1 << _SLOT_BITS) - 1)
        found = np.where(keys < 0, NEVER, self._values[slots])  # below 0 there is an edge
        lacking = np.flatnonzero((self._keys[slots] != keys) & (keys >= 0))
        if len(lacking):
            wanted, slots = keys[lacking], slots[lacking]
            new = np.unique(wanted)
            values = np.array(self._look_up((new >> HALF).tolist(), (new & LOWER).tolist()))
            found[lacking] = values = values[np.searchsorted(new, wanted)]
            self._keys[slots], self._values[slots] = wanted, values
        return found

    def find_one(self, left: int, right: int) -> int:
        """One pair."""
        return NEVER if EDGE in (left, right) else self._look_up([left], [right])[0]

    def _look_up(self, left: list[int], right: list[int]) -> list[int]:
        firsts, seconds = ([self.symbols[number] for number in numbers] for numbers in (left, right))
        ranks = map(self.rank, firsts, seconds)
        return [
            NEVER if rank is None else rank << HALF | self.number(first + second)
            for rank, first, second in zip(ranks, firsts, seconds, strict=True)
        ]
