"""SentencePiece's compiled normalization: what is written in place of some characters, as a table that files carry.

The table is a double-array trie over UTF-8 bytes (Aoe, 1989; as Darts-clone writes it) and the texts that it points to.
At every place of a text, the longest entry that begins there counts; characters without one stay. That is the way of
SentencePiece. `tokenizers` looks up short clusters of characters as a whole, and loses the accent behind a letter that
is replaced.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import FormatError


class CharsMap:
    """Replacements of one table. Raises FormatError for bytes that are none."""

    def __init__(self, raw: bytes) -> None:
        size = int.from_bytes(raw[:4], "little") if len(raw) >= 4 else -1
        if not 0 < size <= len(raw) - 4 or size % 4:
            raise FormatError(f"a precompiled_charsmap of {len(raw)} bytes that names a trie of {size}; it is damaged")
        self._units: NDArray[np.uint32] = np.frombuffer(raw, "<u4", size // 4, 4)
        self._texts = raw[4 + size :]

    def apply(self, text: str) -> str:
        """The text with all replacements."""
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

    def _longest(self, data: bytes, start: int) -> tuple[int, bytes] | None:
        """Where the longest entry from a place on ends, and its replacement."""
        units, found = self._units, None
        node = _offset(int(units[0]))
        for at in range(start, len(data)):
            node ^= data[at]
            if node >= len(units):
                break
            unit = int(units[node])
            if unit & 0x800000FF != data[at]:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                found = at + 1, int(units[node]) & 0x7FFFFFFF
        if found is None:
            return None
        end, begin = found
        stop = self._texts.find(b"\0", begin)
        if begin >= len(self._texts) or stop < 0:
            raise FormatError("the precompiled_charsmap points behind its texts; the file is damaged")
        return end, self._texts[begin:stop]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)
