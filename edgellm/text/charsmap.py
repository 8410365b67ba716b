"""SentencePiece's compiled normalization: what is written in place of some characters, as a table that files carry.

The table is a double-array trie over UTF-8 bytes (Aoe, 1989; as Darts-clone writes it) and the texts that it points to.

SentencePiece takes, at every place of a text, the longest entry that begins there; characters without one stay.
`tokenizers` goes from one grapheme cluster to the next, a letter and its accents: if one of up to five bytes begins
with an entry, the shortest such entry stands for all of it, and otherwise each of its characters is looked up alone. So
an accent is lost behind a letter that is replaced, and a line break of two characters becomes one space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import FormatError

_LONGEST_CLUSTER = 5  # bytes of one that is looked up as a whole
_MOST_REMEMBERED = 10_000  # clusters


class CharsMap:
    """Replacements of one table. Raises FormatError for bytes that are none."""

    def __init__(self, raw: bytes) -> None:
        size = int.from_bytes(raw[:4], "little") if len(raw) >= 4 else -1
        if not 0 < size <= len(raw) - 4 or size % 4:
            raise FormatError(f"a precompiled_charsmap of {len(raw)} bytes that names a trie of {size}; it is damaged")
        self._units: NDArray[np.uint32] = np.frombuffer(raw, "<u4", size // 4, 4)
        self._texts = raw[4 + size :]
        self._of_cluster: dict[str, str] = {}

    def apply(self, text: str) -> str:
        """The text with all replacements, as SentencePiece makes them."""
        if text.isascii() and text.isprintable():
            return text  # no table replaces those that are printed
        data, at, out = text.encode(), 0, []
        while at < len(data):
            found = self._longest(data, at)
            if found is None:
                end = at + 1
                while end < len(data) and data[end] & 0xC0 == 0x80:
                    end += 1
                out.append(data[at:end])
            else:
                end, replacement = found
                out.append(replacement)
            at = end
        return b"".join(out).decode("utf-8", "replace")

    def apply_to_clusters(self, text: str) -> str:
        """The text with all replacements, as `tokenizers` makes them."""
        if text.isascii() and text.isprintable():
            return text
        clusters = _clusters()(text)
        known = self._of_cluster
        new = {cluster: self._replaced(cluster) for cluster in set(clusters) if cluster not in known}
        if len(known) + len(new) <= _MOST_REMEMBERED:
            known |= new
        return "".join([known[cluster] if cluster in known else new[cluster] for cluster in clusters])

    def _replaced(self, cluster: str) -> str:
        data = cluster.encode()
        if len(data) <= _LONGEST_CLUSTER and (found := self._shortest(data)) is not None:
            return found.decode("utf-8", "replace")
        each = (char if (found := self._shortest(char.encode())) is None else found.decode("utf-8", "replace")
                for char in cluster)  # fmt: skip
        return "".join(each)

    def _shortest(self, data: bytes) -> bytes | None:
        """The replacement of the shortest entry that begins a text."""
        return next((self._replacement(at) for _, at in self._entries(data, 0)), None)

    def _longest(self, data: bytes, start: int) -> tuple[int, bytes] | None:
        """Where the longest entry from a place on ends, and its replacement."""
        found = None
        for found in self._entries(data, start):  # noqa: B007
            pass
        return None if found is None else (found[0], self._replacement(found[1]))

    def _entries(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Where each entry from a place on ends, shortest first, and where its replacement begins."""
        units = self._units
        node = _offset(int(units[0]))
        for at in range(start, len(data)):
            node ^= data[at]
            if node >= len(units):
                return
            unit = int(units[node])
            if unit & 0x800000FF != data[at]:
                return
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                yield at + 1, int(units[node]) & 0x7FFFFFFF

    def _replacement(self, begin: int) -> bytes:
        stop = self._texts.find(b"\0", begin)
        if begin >= len(self._texts) or stop < 0:
            raise FormatError("the precompiled_charsmap points behind its texts; the file is damaged")
        return self._texts[begin:stop]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


@cache
def _clusters() -> Callable[[str], list[str]]:
    import regex

    found: Callable[[str], list[str]] = regex.compile(r"\X").findall
    return found
