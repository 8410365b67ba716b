"""Records: the flat rows of 64-bit words through which Python talks to compiled kernels.

A schema declares the words once, by name. Python fills a record through NumPy, kernels read it through
attributes (`op.n_rows`, `op.batch.n_tokens`), and neither side ever writes a bare offset:

    >>> POINT = Schema("point", x="i64", y="i64")
    >>> points = POINT.new(10)
    >>> points[3]["x"] = 7

Field kinds: "i64" an integer, "f64" a number, "ptr" an address, or another Schema: the address of such a record.
This module needs NumPy alone; `numba_records.py` teaches Numba the same schemas when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

import numpy as np

WORD_BYTES = 8
LINE = 64  # bytes of a cache line


class Schema:
    """The named 64-bit words of one kind of record, in order."""

    def __init__(self, name: str, **fields: str | Schema) -> None:
        self.name = name
        self.fields = fields
        self.dtype = np.dtype([(field, np.float64 if kind == "f64" else np.int64) for field, kind in fields.items()])
        self._packing = Struct("=" + "".join("d" if kind == "f64" else "q" for kind in fields.values()))

    def new(self, n: int = 1) -> np.ndarray:
        """n zeroed records; their addresses stay valid as long as the array lives."""
        return np.zeros(n, self.dtype)

    def put(self, memory: memoryview, index: int, *words: float) -> None:
        """Write all words of a record, the index-th of those in memory: bytes, as `array.view(np.uint8).data` is."""
        self._packing.pack_into(memory, index * self._packing.size, *words)

    def filled(self, words: Mapping[str, float]) -> np.ndarray:
        """One record with these words, and zeros for the others: much quicker than to write it word by word.

        Raises KeyError for a word that the record has not, struct.error for a fraction where an integer belongs.
        """
        if not words.keys() <= self.fields.keys():
            raise KeyError(f"{self.name} has no {', '.join(words.keys() - self.fields.keys())}")
        packed = self._packing.pack(*[words.get(field, 0) for field in self.fields])
        return np.frombuffer(bytearray(packed), self.dtype)

    def __repr__(self) -> str:
        return f"Schema({self.name})"
