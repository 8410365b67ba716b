"""Where each string of a long list stands, such as a token or a merge, without a Python object for any of them.

For a short prompt some hundred strings are looked up among hundreds of thousands, and a dict of them all takes far
longer to make than the prompt to encode. Here every string gets a hash, made for all of them at once, and the hashes
are sorted: a string is found by bisection, and then compared. Who looks up thousands is better off with a dict, and
gets one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LOOKUPS = 1 << 14  # which take about as long as to make a dict: from then on, it pays
MOST_ALIKE = 256  # strings with one hash; a list that was made up to have more gets a dict at once
_WORD = 8  # bytes
_BITS = (1 << 64) - 1
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(_WORD + 1)], "<u8")
# Odd numbers, which spread what is multiplied by them over all bits (Knuth, volume 3, section 6.4).
_OF_FIRST, _OF_LAST, _OF_LENGTH = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9


class _Sorted(NamedTuple):
    """Hashes in order, whose they are, and how many are equal at most. Items of a memoryview come quickly."""

    hashes: memoryview
    order: memoryview
    most_alike: int


class StringIndex:
    """Finds strings by their bytes. An empty string is never found; of equal ones, the last is.

    strings:  a list of str or bytes, or a lazy sequence that offers `in_one()` and `as_bytes()`.
              Before each may stand nothing or eight bytes, as its length in a GGUF file.

    The memory of a lazy sequence is read as long as this is used.
    """

    def __init__(self, strings: Any) -> None:
        self._strings = strings
        self._bytes, self._starts, self._lead = in_one(strings)
        self._n_lookups = 0
        self._as_dict: dict[bytes, int] | None = None

    def __contains__(self, string: object) -> bool:
        return isinstance(string, bytes) and self.get(string) is not None

    def __getitem__(self, string: bytes) -> int:
        """Where a string stands; a KeyError when it does not."""
        found = self.get(string)
        if found is None:
            raise KeyError(string)
        return found

    @property
    def getter(self) -> Callable[[bytes], int | None]:
        """`get`, or what is quicker by now: for who looks up many."""
        return self.get if self._as_dict is None else self._as_dict.get

    def get(self, string: bytes) -> int | None:
        """Where a string stands, or None."""
        self._n_lookups += 1
        known = self._dict()
        return self._find(string) if known is None else known.get(string)

    def _find(self, string: bytes) -> int | None:
        hashes, order, _ = self._sorted
        hashed = _hash(string)
        found, i = None, bisect_left(hashes, hashed)
        while string and i < len(hashes) and hashes[i] == hashed:
            if self._at(order[i]) == string and (found is None or order[i] > found):
                found = order[i]
            i += 1
        return found

    def has_repeated(self) -> bool:
        """Whether a string stands there more than once, other than the empty one."""
        if (known := self._dict()) is not None:
            return len(known) < int(np.count_nonzero(np.diff(self._starts) > self._lead))
        hashes = np.frombuffer(self._sorted.hashes, np.uint64)
        same = np.zeros(len(hashes) + 1, bool)  # as the one before
        same[1:-1] = hashes[1:] == hashes[:-1]
        strings = [self._at(self._sorted.order[i]) for i in np.flatnonzero(same[1:] | same[:-1]).tolist()]
        others = [string for string in strings if string]
        return len(set(others)) < len(others)

    def count(self, byte: int) -> int:
        """How often a byte occurs, in all strings together."""
        begin, end = int(self._starts[0]), int(self._starts[-1])
        n = np.count_nonzero(self._bytes[begin:end] == byte)
        if self._lead:  # a word that no string has
            n -= np.count_nonzero(_words(self._bytes, self._starts)(self._starts[:-1]).view(np.uint8) == byte)
        return int(n)

    def _at(self, place: int) -> bytes:
        return self._bytes[int(self._starts[place]) + self._lead : int(self._starts[place + 1])].tobytes()

    def _dict(self) -> dict[bytes, int] | None:
        """Where each string stands, as soon as that pays."""
        if self._as_dict is None and (self._n_lookups > MOST_LOOKUPS or self._sorted.most_alike > MOST_ALIKE):
            strings = as_bytes(self._strings)
            made = dict(zip(strings, range(len(strings)), strict=True))
            made.pop(b"", None)
            self._as_dict = made
        return self._as_dict

    @cached_property
    def _sorted(self) -> _Sorted:
        hashes = _hashes(self._bytes, self._starts, self._lead)
        order = hashes.argsort()
        hashes = hashes[order]
        ends = np.flatnonzero(hashes[1:] != hashes[:-1])
        runs = np.diff(ends, prepend=-1, append=len(hashes) - 1)
        return _Sorted(hashes.data, order.data, int(runs.max()))


def _hashes(array: NDArray[np.uint8], starts: NDArray[np.int64], lead: int) -> NDArray[np.uint64]:
    """uint64 [n]: the `_hash` of each string."""
    words = _words(array, starts)
    first, last = starts[:-1] + lead, starts[1:]
    lengths = last - first
    masks = _MASKS[np.minimum(lengths, _WORD)]
    hashes = (words(first) & masks) * np.uint64(_OF_FIRST)
    hashes ^= hashes >> np.uint64(32)
    hashes += words(np.maximum(last - _WORD, first)) & masks
    hashes *= np.uint64(_OF_LAST)
    hashes ^= hashes >> np.uint64(32)
    hashes += lengths.astype(np.uint64)
    return hashes * np.uint64(_OF_LENGTH)


def _words(array: NDArray[np.uint8], starts: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], NDArray[np.uint64]]:
    """Gives the eight bytes from each of some places on, all of which lie among the strings; behind them are zeros."""
    begin, end = int(starts[0]), int(starts[-1])
    padded = np.concatenate([array[begin:end], np.zeros(_WORD, np.uint8)])
    # One from each byte on.
    words: NDArray[np.uint64] = np.ndarray((len(padded) - _WORD + 1,), "<u8", padded.data, strides=(1,))
    return lambda places: words[places - begin]


def _hash(string: bytes) -> int:
    """64 bits made of a string's first and last eight bytes and its length."""
    hashed = int.from_bytes(string[:_WORD], "little") * _OF_FIRST & _BITS
    hashed ^= hashed >> 32
    hashed = (hashed + int.from_bytes(string[-_WORD:], "little")) * _OF_LAST & _BITS
    hashed ^= hashed >> 32
    return (hashed + len(string)) * _OF_LENGTH & _BITS


def in_one(strings: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The strings of a lazy sequence or a list, each as UTF-8, in a row: bytes, int64 starts of shape (n + 1,), lead.

    String i is `bytes[starts[i] + lead : starts[i + 1]]`. The bytes, of uint8, may be those of a mapped file.
    """
    if hasattr(strings, "in_one"):
        return strings.in_one()
    listed = as_bytes(strings)
    starts = np.zeros(len(listed) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, listed), np.int64, len(listed)), out=starts[1:])
    return np.frombuffer(b"".join(listed) or b"\0", np.uint8), starts, 0


def as_bytes(strings: Any) -> list[bytes]:
    """The strings of a lazy sequence or a list, each as UTF-8."""
    if hasattr(strings, "as_bytes"):
        return strings.as_bytes()
    return [item.encode() if isinstance(item, str) else item for item in strings]
