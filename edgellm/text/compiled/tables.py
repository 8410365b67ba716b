"""Lists of strings in the memory that kernels read, with a table by which each is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.kernels.word_records import AT_ONCE, IN_LINE, INDEX_STRINGS, STRINGS
from edgellm.machine.large_pages import on_large_pages
from edgellm.text.string_index import in_one

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kernel = Callable[[int, int, int], None]


class StringTable:
    """A list of strings, for kernels.

    record:  the `STRINGS` of `edgellm.kernels.word_records`.
    found:   whether its strings can be found: not when too many of their keys are alike.
    n_spaces:  in all pairs, if they can be found.

    strings:    in their order, a list or a lazy sequence; empty ones are never found.
    are_pairs:  they are two halves with a space between; others are never found.
    index:      the kernel `index_strings`.
    ranks:      int32 [n], in which order pairs are joined that make the strings, UNRANKED for never; None: in theirs.
    """

    def __init__(self, strings: Any, are_pairs: bool, index: Kernel, ranks: NDArray[np.int32] | None = None) -> None:
        array, starts, lead = in_one(strings)
        n = len(starts) - 1
        table = _places(max(IN_LINE, 1 << (n + n // 2).bit_length()))
        status = np.zeros(2, np.int64)
        self._kept = array, starts, table, ranks
        self.record = STRINGS.filled(
            {
                "bytes": array.ctypes.data,
                "starts": starts.ctypes.data,
                "lead": lead,
                "n": n,
                "are_pairs": are_pairs,
                "ranks": 0 if ranks is None else ranks.ctypes.data,
                "table": table.ctypes.data,
                "n_places": len(table),
            }
        )
        scratch = np.empty(3 * AT_ONCE, np.int64)
        record = INDEX_STRINGS.filled(
            {"strings": self.record.ctypes.data, "scratch": scratch.ctypes.data, "status": status.ctypes.data}
        )
        index(record.ctypes.data, 0, 0)
        self.found = not status[0]
        self.n_spaces = int(status[1])


def _places(n: int) -> NDArray[np.int64]:
    """int64 [n, 2] of zeros.

    A table of megabytes is touched all over as it is made: as small pages, it would take as long to get as to fill.
    """
    return on_large_pages(n * 16).view(np.int64).reshape(n, 2)
