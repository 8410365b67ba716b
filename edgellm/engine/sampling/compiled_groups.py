"""What sampling does with all logits of a large vocabulary, by kernels.

NumPy takes several passes for it, a good part of a token's time; a kernel takes one, which the threads of a team share.
After a token, caches are full of weights, and a line of Python costs several times what it usually does: so one program
does all of a search, and few lines are on the way to it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.sampling.groups import (
    ALL_BITS,
    Before,
    Drawn,
    Filter,
    GroupLoops,
    Kept,
    Penalty,
    Row,
    Weights,
    n_groups_of,
)
from edgellm.kernels import sampling_records as records
from edgellm.kernels.records import MAXIMA_GROUP, OP, PROGRAM
from edgellm.kernels.registry import Kernel, find
from edgellm.kernels.sampling_records import FILTER, GROUPS_TOGETHER

if TYPE_CHECKING:
    from edgellm.graph.team import Team
    from edgellm.kernels.schema import Schema
    from edgellm.kernels.store import KernelStore

MOST_FILTERS = 16  # that are applied together
FEW_CHUNKS = 4  # which one thread has done before others have come
NO_FILTER = 0
LARGEST, WEIGHTS, SPREAD = records.GROUP_LARGEST, records.GROUP_WEIGHTS, records.GROUP_SPREAD
FIND, DRAW = records.GROUP_FIND, records.GROUP_DRAW
IN_CHUNKS = (LARGEST, WEIGHTS, SPREAD)
# The kernels of a search, by its first filter.
SEARCHES = {
    records.MOST_LIKELY: (FIND,),
    records.WITHIN: (FIND,),
    records.REACHING: (WEIGHTS, FIND),
    records.TYPICAL: (WEIGHTS, FIND),
    records.PROBABLE: (WEIGHTS, FIND),
    records.SIGMAS: (SPREAD, FIND),
    records.EVENNESS: (WEIGHTS, records.GROUP_COOL, WEIGHTS, DRAW),
    NO_FILTER: (WEIGHTS, DRAW),
}
MAXIMA, ALL_WEIGHTS, ALL_SPREAD = (LARGEST,), (WEIGHTS,), (SPREAD,)
CHANGE, REPEATED = (records.GROUP_CHANGE,), (records.REPEATED,)
WITH_PRODUCTS = (records.TYPICAL, records.EVENNESS)
NO_BYTES = ctypes.c_char * 0
PACKED_FILTER = Struct("=qdddd")


def address_of(array: np.ndarray) -> int:
    """Where an array begins: of one that can be written, known far sooner than by `array.ctypes.data`."""
    return ctypes.addressof(NO_BYTES.from_buffer(array.data)) if array.flags.writeable else array.ctypes.data


def sampling_kernels() -> list[Kernel]:
    """All that samplers may need."""
    programs = *SEARCHES.values(), MAXIMA, ALL_WEIGHTS, ALL_SPREAD, CHANGE, REPEATED
    return [find(schema.name) for schema in dict.fromkeys(chain(*programs))]


class CompiledGroupLoops(GroupLoops):
    """The same by kernels, which are loaded when a step first needs them. For one thread at a time.

    team: shares passes over all logits, if it is given.
    """

    def __init__(self, store: KernelStore, team: Team | None = None) -> None:
        self._store, self._team = store, team
        self._programs: dict[tuple[Schema, ...], _Program] = {}
        self._seen: dict[str, tuple[np.ndarray, int]] = {}  # where arrays are that come again and again
        self._rest = np.empty(MAXIMA_GROUP, np.float32)
        self._found, self._share = np.zeros(3, np.int64), np.zeros(1)
        self._filters = FILTER.new(MOST_FILTERS)
        self._filter_bytes = self._filters.view(np.uint8).data
        self._rest_at, self._filters_at = self._rest.ctypes.data, self._filters.ctypes.data
        self._found_at, self._share_at = self._found.ctypes.data, self._share.ctypes.data
        self._positions = np.empty(0, np.int64)
        self._row: Row | None = None  # the last one, what records about it begin with, and its chunks
        self._row_words: tuple[int, ...] = ()
        self._n_chunks = 0
        self._weighed_by = 0.0  # the temperature of the sums that are there of this row; 0 if there are none

    def _make_room(self, n: int) -> None:
        """For what is said of n tokens. The system gives the memory as it is first written."""
        if n <= len(self._positions):
            return
        self._row = None
        self._every = np.full(-(-n // MAXIMA_GROUP), ALL_BITS)
        self._positions, self._logits, self._numbers = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n)
        self._weights, self._ranks = np.empty(n, np.float32), np.empty(n, np.float32)
        self._counts = np.zeros(n, np.int32)
        self._sums, self._parts = np.empty(len(self._every), np.float32), np.empty((_n_chunks(len(self._every)), 3))
        self._every_at = self._every.ctypes.data
        self._positions_at, self._logits_at = self._positions.ctypes.data, self._logits.ctypes.data
        self._weights_at, self._ranks_at = self._weights.ctypes.data, self._ranks.ctypes.data
        self._sums_at, self._parts_at = self._sums.ctypes.data, self._parts.ctypes.data
        self._numbers_at, self._counts_at = self._numbers.ctypes.data, self._counts.ctypes.data

    def largest(self, logits: np.ndarray, words: np.ndarray | None, known: np.ndarray | None) -> np.ndarray:
        maxima = np.empty(n_groups_of(logits), logits.dtype)
        row = Row(logits, words, maxima)
        if not self._can_read(row):
            return super().largest(logits, words, known)
        self._run(MAXIMA, row, 0 if known is None else self._at("known", known))
        return maxima

    def weights(self, row: Row, temperature: float, with_products: bool = True) -> Weights:
        if not self._can_read(row):
            return super().weights(row, temperature)
        self._run(ALL_WEIGHTS, row, 1 / temperature, self._sums_at, self._parts_at, with_products)
        self._weighed_by = temperature
        total, products, n = self._all_parts()
        return Weights(total, products, int(n))

    def spread(self, row: Row) -> tuple[int, float]:
        if not self._can_read(row):
            return super().spread(row)
        self._weighed_by = 0.0
        self._run(ALL_SPREAD, row, 1.0, self._sums_at, self._parts_at, False)
        n, total, squares = self._all_parts()
        if not math.isfinite(squares):
            return super().spread(row)
        return int(n), max(0.0, squares / n - (total / n) ** 2) if n else 0.0

    def _all_parts(self) -> list[float]:
        found: list[float] = np.add.reduce(self._parts[: self._n_chunks]).tolist()
        return found

    def kept(self, row: Row, filters: Sequence[Filter]) -> Kept:
        n = self._search(row, filters, 1.0, -1.0)
        if n < 0:
            return super().kept(row, filters)
        return self._positions[:n].copy(), self._logits[:n].copy()

    def drawn(self, row: Row, filters: Sequence[Filter], temperature: float, number: float) -> Drawn | None:
        n = self._search(row, filters, temperature, number)
        if n < 0:
            return super().drawn(row, filters, temperature, number)
        if not n:
            return None
        is_only = n == 1 and len(filters) > 0 and filters[0].kind != records.EVENNESS
        return Drawn(self._found.item(1), self._found.item(2), self._share.item(0), is_only)

    def _search(self, row: Row, filters: Sequence[Filter], temperature: float, number: float) -> int:
        """How many stay; below 0 where kernels cannot do it."""
        if not self._can_read(row):
            return -1
        kind, of_all = NO_FILTER, temperature
        for i, (each, value, of_filter, low, high) in enumerate(filters):
            PACKED_FILTER.pack_into(self._filter_bytes, i * PACKED_FILTER.size, each, value, 1 / of_filter, low, high)
            if not i:
                kind, of_all = each, of_filter
        kernels = SEARCHES[kind]
        if kernels[0] is WEIGHTS and self._weighed_by == of_all and kind not in WITH_PRODUCTS:
            kernels = kernels[1:]
        elif kernels[0] is not FIND:
            self._weighed_by = 0.0
        self._run(
            kernels, row, 1 / of_all, self._sums_at, self._parts_at, kind in WITH_PRODUCTS,
            self._filters_at, len(filters), number, 1 / temperature, self._every_at,
            self._positions_at, self._logits_at, self._weights_at, self._ranks_at, self._found_at, self._share_at,
        )  # fmt: skip
        return self._found.item(0)

    def change(self, row: Row, positions: np.ndarray, lost: np.ndarray, repeat: float, temperature: float) -> Before:
        self._make_room(len(positions))
        if not self._can_read(row):
            return super().change(row, positions, lost, repeat, temperature)
        self._numbers[: len(lost)] = lost
        return self._changed(row, positions, 0, Penalty(0.0, 1.0, repeat), temperature)

    def penalize(self, row: Row, ids: np.ndarray, penalty: Penalty, temperature: float) -> Before:
        self._make_room(len(ids))
        if not self._can_read(row):
            return super().penalize(row, ids, penalty, temperature)
        return self._changed(row, ids, self._counts_at, penalty, temperature)

    def _changed(self, row: Row, ids: np.ndarray, counts_at: int, penalty: Penalty, temperature: float) -> Before:
        """counts_at: where they are counted; 0 if their numbers are known."""
        self._weighed_by = 0.0
        self._positions[: len(ids)] = ids
        presence, frequency, repeat = penalty
        self._run(
            CHANGE, row, temperature, repeat, len(ids), self._positions_at, counts_at, self._numbers_at,
            presence, frequency, self._logits_at, self._weights_at, self._found_at,
        )  # fmt: skip
        n = self._found.item(0)
        return Before(self._positions[:n].copy(), self._logits[:n].copy(), self._weights[:n].copy())

    def repeated(self, ids: np.ndarray, limit: int, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        self._make_room(len(ids))
        found = self._positions_at, self._found_at, self._numbers_at
        self._program(REPEATED).run(1, len(ids), address_of(ids), limit, allowed, *found)
        n = int(self._found[0])
        return self._positions[:n].copy(), self._numbers[:n].copy()

    def _can_read(self, row: Row) -> bool:
        """Whether kernels can. How their records begin is known then."""
        if row is self._row:  # as long as nothing is forbidden or changed, one row is asked about again and again
            return True
        logits, allowed, maxima = row
        if logits.dtype != np.float32 or not logits.flags.c_contiguous or not maxima.flags.c_contiguous:
            return False
        self._make_room(len(logits))
        words = self._every_at if allowed is None else self._at("words", allowed)
        x, of_groups = self._at("logits", logits), self._at("maxima", maxima)
        self._row, self._row_words = row, (x, len(logits), words, of_groups, self._rest_at)
        self._n_chunks, self._weighed_by = _n_chunks(len(maxima)), 0.0
        return True

    def _at(self, name: str, array: np.ndarray) -> int:
        """Where an array is: asked for again and again of one array, and slow to find out."""
        seen = self._seen.get(name)
        if seen is None or seen[0] is not array:
            seen = self._seen[name] = array, address_of(array)
        return seen[1]

    def _run(self, kernels: tuple[Schema, ...], row: Row, *others: float) -> None:
        """Some kernels for a row that they can read, with the words of records that come after those of the row."""
        assert row is self._row
        self._program(kernels).run(self._n_chunks, *self._row_words, *others)

    def _program(self, kernels: tuple[Schema, ...]) -> _Program:
        found = self._programs.get(kernels)
        if found is None:
            found = self._programs[kernels] = _Program(kernels, self._store, self._team)
        return found


def _n_chunks(n_groups: int) -> int:
    return -(-n_groups // GROUPS_TOGETHER)


class _Program:
    """Kernels, one after the other, with one record, that of the last: it begins as those of the others."""

    def __init__(self, kernels: tuple[Schema, ...], store: KernelStore, team: Team | None) -> None:
        found = [find(schema.name) for schema in kernels]
        store.load(found)
        self._functions = [store.function(kernel) for kernel in found]
        self._are_in_chunks = [schema in IN_CHUNKS for schema in kernels]
        self._first, self._is_one_call = self._functions[0], self._are_in_chunks == [False]
        self._team = None if self._is_one_call else team
        self._words = kernels[-1].new()
        self._bytes = self._words.view(np.uint8).data
        self._at = self._words.ctypes.data
        self._packing = Struct("=" + "".join("d" if kind == "f64" else "q" for kind in kernels[-1].fields.values()))
        self._n_chunks = np.ones(len(kernels), np.int64)
        self._ops = OP.new(len(kernels))
        self._ops["kernel"] = [store.address(kernel) for kernel in found] if self._team else 0
        self._ops["record"] = self._at
        self._ops["depends"] = range(len(kernels))
        self.record = PROGRAM.new()
        self.record["ops"], self.record["n_ops"] = self._ops.ctypes.data, len(kernels)
        self.record["n_chunks"] = self._n_chunks.ctypes.data
        self._n = 1  # chunks

    def run(self, n_chunks: int, *words: float) -> None:
        """n_chunks:  of the kernels that are in chunks."""
        self._packing.pack_into(self._bytes, 0, *words)
        if self._is_one_call:
            self._first(self._at, 0, 0)
        elif self._team is None or n_chunks < FEW_CHUNKS:
            for function, is_in_chunks in zip(self._functions, self._are_in_chunks, strict=True):
                for chunk in range(n_chunks if is_in_chunks else 1):
                    function(self._at, chunk, 0)
        else:
            if n_chunks != self._n:
                self._n = n_chunks
                self._n_chunks[self._are_in_chunks] = n_chunks
            self._team.run(self)
