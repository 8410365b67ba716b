"""Memory of a program that lies in the order of its ops: their records, and the small matrices of adapters.

A token reads all weights, and after that little of what was there before is in a cache. A record that names another one
would then wait for memory several times over. So all records of an op are one piece of memory, which threads prefetch
while the op before is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgellm.graph.ops import Op, Packed
from edgellm.kernels.schema import LINE, Schema
from edgellm.machine.large_pages import LARGE_PAGE, on_large_pages

PIECE_BYTES = 1 << 16
OP_BYTES = 1 << 12  # more than the records of most ops


def aligned(n_bytes: int) -> np.ndarray:
    """uint8 [n_bytes] on a cache line. The system gives the memory as it is first touched."""
    memory = np.empty(n_bytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + n_bytes]


class RecordMemory:
    """Records one behind the other; they stay valid as long as this lives."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._piece = aligned(0)
        self._at = self._first = 0

    def begin_op(self) -> None:
        """What comes now belongs to the next op."""
        self._at = -(-self._at // LINE) * LINE
        if self._at + OP_BYTES > len(self._piece):
            self._more(OP_BYTES)
        self._first = self._at

    @property
    def op_span(self) -> tuple[int, int]:
        """The address of what there is of this op, and how many lines it takes."""
        return self._piece.ctypes.data + self._first, -(-(self._at - self._first) // LINE)

    def new(self, schema: Schema, n: int = 1) -> np.ndarray:
        """n zeroed records."""
        size = n * schema.dtype.itemsize
        if self._at + size > len(self._piece):
            self._more(size)
        place = self._piece[self._at : self._at + size]
        place[...] = 0
        self._at += size
        return place.view(schema.dtype)

    def filled(self, schema: Schema, words: Mapping[str, float]) -> np.ndarray:
        """As `Schema.filled`."""
        record = self.new(schema)
        record[...] = schema.filled(words)
        return record

    def _more(self, n_bytes: int) -> None:
        self._piece = aligned(max(PIECE_BYTES, n_bytes))
        self._pieces.append(self._piece)
        self._at = self._first = 0


def gathered(ops: Iterable[Op]) -> tuple[np.ndarray, dict[Packed, int]]:
    """One piece of memory for all packed matrices, in the order in which ops read them, and the address of each."""
    found = [content for op in ops for part in op.parts or [op] for content in part.fields.values()]
    packed = [content for content in dict.fromkeys(c for c in found if isinstance(c, Packed))]
    starts = np.cumsum([0, *(-(-content.n_bytes // LINE) * LINE for content in packed)])
    memory = on_large_pages(_whole_pages(int(starts[-1])))
    for content, start in zip(packed, starts, strict=False):
        memory[start : start + content.n_bytes] = content.array.reshape(-1)
    return memory, {content: memory.ctypes.data + int(start) for content, start in zip(packed, starts, strict=False)}


def _whole_pages(n_bytes: int) -> int:
    """From one large page on, a multiple of them: what is less than one would lie on small ones."""
    return n_bytes if n_bytes < LARGE_PAGE else -(-n_bytes // LARGE_PAGE) * LARGE_PAGE
