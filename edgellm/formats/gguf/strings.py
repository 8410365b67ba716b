"""Arrays of strings, as vocabularies are: found quickly, decoded only when somebody looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from edgellm.errors import FormatError
from edgellm.formats.gguf.spec import U64

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 1 << 16  # bytes searched at a time; they and their temporaries stay in the fastest caches


class StringArray(Sequence[str]):
    """A string array inside a mapped file; nothing is copied or decoded before it is asked for.

    Items are str; a FormatError tells of one that is not UTF-8. `as_bytes` gives all of them undecoded.
    """

    def __init__(self, data: memoryview, starts: NDArray[np.int64]) -> None:
        # String i lies behind its 8-byte length: from starts[i] + 8 to starts[i + 1].
        self._data = data
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return _decode(bytes(self._data[self._starts[i] + 8 : self._starts[i + 1]]), i)

    def __iter__(self) -> Iterator[str]:
        joined = self._joined_by_zeros()
        try:
            if joined is not None:
                return iter(joined.decode().split("\0"))
        except UnicodeDecodeError:
            pass  # going one by one finds out which it is
        return map(_decode, self.as_bytes(), range(len(self)))

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"

    def copy(self) -> StringArray:
        """The same strings in memory of their own, which needs no file."""
        begin, end = int(self._starts[0]), int(self._starts[-1])
        return StringArray(memoryview(bytes(self._data[begin:end])), self._starts - begin)

    def in_one(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
        """All strings in a row, as they are in the file: bytes, starts and lead.

        String i, behind its length, is `bytes[starts[i] + lead : starts[i + 1]]`.
        """
        return np.frombuffer(self._data, np.uint8), self._starts, 8

    def as_bytes(self) -> list[bytes]:
        """All strings as the file holds them, the fast way (about 0.1 µs each)."""
        joined = self._joined_by_zeros()
        if joined is not None:
            return joined.split(b"\0")
        starts, ends = (self._starts[:-1] + 8).tolist(), self._starts[1:].tolist()
        return [bytes(self._data[start:end]) for start, end in zip(starts, ends, strict=True)]

    def _joined_by_zeros(self) -> bytes | None:
        """All strings with a zero byte between each two, ready to be split; None when they hold zeros.

        Splitting in C is far quicker than taking slices in Python.
        """
        begin, end = int(self._starts[0]), int(self._starts[-1])
        text = np.frombuffer(self._data[begin:end], np.uint8).copy()
        lengths_at = self._starts[:-1] - begin
        has_long = (np.diff(self._starts) >= 8 + 256).any()
        for i in range(8 if has_long else 1):  # the upper bytes of a short length are zeros already
            text[lengths_at + i] = 0
        keep = text != 0
        keep[lengths_at] = True
        joined = text[keep]
        if len(self) == 0 or len(joined) != len(text) - 7 * len(self):
            return None
        return joined.tobytes()[1:]


def _decode(text: bytes, index: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise FormatError(f"string {index} of an array is not UTF-8: {text[:40]!r}") from None


def locate_strings(data: memoryview, start: int, count: int) -> NDArray[np.int64]:
    """Where `count` strings lie that follow each other from `start`: int64[count + 1], with the end as last.

    A string's place is known only from the length of the one before it, and stepping through a quarter of a
    million lengths in Python takes too long. But a length below 256 is a byte followed by seven zeros, and
    text holds no zeros: so NumPy finds all places that look like a length at once, and the run of them that
    is a true chain, each length leading exactly to the next place, is right beyond doubt. Where the chain
    breaks (a long string, an empty one, zeros in a string) the rest of the window goes step by step.
    """
    bytes_ = np.frombuffer(data, np.uint8)
    starts = np.empty(count + 1, np.int64)
    found, position = 0, start
    while found < count:
        window_end = min(position + WINDOW, len(bytes_))
        chain = _chain_of_short_strings(bytes_[position:window_end])
        n = min(len(chain) - 1, count - found)
        starts[found : found + n] = chain[:n] + position
        found += n
        position += int(chain[n])
        only_window_ended = n > 0 and position + 512 > window_end
        if found < count and not only_window_ended:
            steps = _step_by_step(data, position, window_end, count - found)
            n = len(steps) - 1
            starts[found : found + n] = steps[:n]
            found += n
            position = steps[n]
    starts[count] = position
    return starts


def _chain_of_short_strings(window: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Starts of the strings that follow each other from byte 0, as far as all are short and not empty.

    The last of them is where the next string starts, whatever that is.
    """
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    places = np.flatnonzero(seven[1:])
    if not len(places) or places[0] != 0:
        return np.zeros(1, np.int64)
    leads_to_next = places[:-1] + window[places[:-1]] + 8 == places[1:]
    broken = np.flatnonzero(~leads_to_next)
    return places[: broken[0] + 1] if len(broken) else places


def _step_by_step(data: memoryview, position: int, window_end: int, most: int) -> list[int]:
    """Starts of at least one and at most `most` strings up to the end of the window, and of what follows."""
    starts = [position]
    last_length, length_at = len(data) - 8, U64.unpack_from
    while position <= last_length:
        position += 8 + length_at(data, position)[0]
        starts.append(position)
        if position >= window_end or len(starts) > most:
            break
    if len(starts) == 1 or position > len(data):
        raise FormatError("the file ends inside a string array: it is cut off, or a length is wrong")
    return starts
