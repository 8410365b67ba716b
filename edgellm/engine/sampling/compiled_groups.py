"""What sampling does with all logits of a large vocabulary, by kernels.

NumPy takes several passes for it, a good part of a token's time; a kernel takes one, which the threads of a team share.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.sampling.groups import (
    ALL_BITS,
    Drawn,
    Filter,
    GroupLoops,
    Kept,
    Penalty,
    Row,
    Weights,
    all_together,
    n_groups_of,
)
from edgellm.kernels import sampling_records as records
from edgellm.kernels.records import MAXIMA_GROUP, OP, PROGRAM
from edgellm.kernels.registry import find
from edgellm.kernels.sampling_records import FILTER, GROUPS_TOGETHER

if TYPE_CHECKING:
    from edgellm.graph.team import Team
    from edgellm.kernels.schema import Schema
    from edgellm.kernels.store import KernelStore

MOST_FILTERS = 16  # that are applied together
FEW_CHUNKS = 4  # which one thread has done before others have come
IN_CHUNKS = (records.GROUP_LARGEST, records.GROUP_WEIGHTS, records.GROUP_SPREAD)
NO_BYTES = ctypes.c_char * 0
PACKED_FILTER = Struct("=qdd")


def address_of(array: np.ndarray) -> int:
    """Where an array begins: of one that can be written, known far sooner than by `array.ctypes.data`."""
    return ctypes.addressof(NO_BYTES.from_buffer(array.data)) if array.flags.writeable else array.ctypes.data


class CompiledGroupLoops(GroupLoops):
    """The same by kernels, which are loaded when a step first needs them. For one thread at a time.

    team: shares passes over all logits, if it is given.
    """

    def __init__(self, store: KernelStore, team: Team | None = None) -> None:
        self._store, self._team = store, team
        self._kernels: dict[str, _Kernel] = {}
        self._seen: dict[str, tuple[np.ndarray, int]] = {}  # where arrays are that come again and again
        self._rest = np.empty(MAXIMA_GROUP, np.float32)
        self._found, self._share = np.zeros(3, np.int64), np.zeros(1)
        self._filters = FILTER.new(MOST_FILTERS)
        self._filter_bytes = self._filters.view(np.uint8).data
        self._rest_at, self._filters_at = self._rest.ctypes.data, self._filters.ctypes.data
        self._found_at, self._share_at = self._found.ctypes.data, self._share.ctypes.data
        self._positions = np.empty(0, np.int64)

    def _make_room(self, n: int) -> None:
        """For what is said of n tokens. The system gives the memory as it is first written."""
        if n <= len(self._positions):
            return
        self._every = np.full(-(-n // MAXIMA_GROUP), ALL_BITS)
        self._positions, self._logits, self._numbers = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n)
        self._weights, self._ranks, self._counts = (
            np.empty(n, np.float32),
            np.empty(n, np.float32),
            np.zeros(n, np.int32),
        )
        self._every_at = self._every.ctypes.data
        self._positions_at, self._logits_at = self._positions.ctypes.data, self._logits.ctypes.data
        self._weights_at, self._ranks_at = self._weights.ctypes.data, self._ranks.ctypes.data
        self._numbers_at, self._counts_at = self._numbers.ctypes.data, self._counts.ctypes.data

    def largest(self, logits: np.ndarray, words: np.ndarray | None, known: np.ndarray | None) -> np.ndarray:
        maxima = np.empty(n_groups_of(logits), logits.dtype)
        row = Row(logits, words, maxima)
        if not self._can_read(row):
            return super().largest(logits, words, known)
        self._run(records.GROUP_LARGEST, row, 0 if known is None else self._at("known", known))
        return maxima

    def weights(self, row: Row, largest: float, temperature: float) -> Weights:
        if not self._can_read(row):
            return super().weights(row, largest, temperature)
        sums, parts = np.empty(len(row.maxima), np.float32), np.zeros((_n_chunks(row), 3))
        of_sums, of_parts = self._at("sums", sums), self._at("parts", parts)
        self._run(records.GROUP_WEIGHTS, row, largest, 1 / temperature, of_sums, of_parts)
        return all_together(largest, temperature, sums, parts)

    def draw(self, row: Row, weights: Weights, number: float) -> Drawn:
        if not self._can_read(row):
            return super().draw(row, weights, number)
        sums, parts = self._at("sums", weights.sums), self._at("parts", weights.parts)
        found = self._found_at, self._share_at
        self._run(records.GROUP_DRAW, row, weights.largest, 1 / weights.temperature, sums, parts, number, *found)
        token = int(self._found[0])
        return Drawn(token, token, float(self._share[0]))

    def spread(self, row: Row, middle: float) -> tuple[int, float, float]:
        if not self._can_read(row):
            return super().spread(row, middle)
        parts = np.zeros((_n_chunks(row), 3))
        self._run(records.GROUP_SPREAD, row, middle, address_of(parts))
        n, total, squares = np.add.reduce(parts).tolist()
        return int(n), total, squares

    def kept(self, row: Row, filters: Sequence[Filter], weights: Weights | None) -> Kept:
        if not self._can_read(row):
            return super().kept(row, filters, weights)
        n = self._find(row, filters, weights, 1.0, -1.0)
        return self._positions[:n].copy(), self._logits[:n].copy()

    def drawn_of_kept(
        self, row: Row, filters: Sequence[Filter], weights: Weights | None, temperature: float, number: float
    ) -> Drawn | None:
        if not self._can_read(row):
            return super().drawn_of_kept(row, filters, weights, temperature, number)
        n = self._find(row, filters, weights, temperature, number)
        return Drawn(int(self._found[1]), int(self._found[2]), float(self._share[0])) if n else None

    def _find(
        self, row: Row, filters: Sequence[Filter], weights: Weights | None, temperature: float, number: float
    ) -> int:
        for i, (kind, value, each) in enumerate(filters):
            PACKED_FILTER.pack_into(self._filter_bytes, i * PACKED_FILTER.size, kind, value, 1 / each)
        of_all = (0, 0.0, 0.0)
        if weights is not None:
            of_all = self._at("sums", weights.sums), weights.total, weights.products
        self._run(
            records.GROUP_FIND, row, self._filters_at, len(filters), *of_all, number, 1 / temperature, self._every_at,
            self._positions_at, self._logits_at, self._weights_at, self._ranks_at, self._found_at, self._share_at,
        )  # fmt: skip
        return int(self._found[0])

    def change(
        self, row: Row, positions: np.ndarray, lost: np.ndarray, repeat: float, temperature: float
    ) -> np.ndarray:
        if not self._can_read(row):
            return super().change(row, positions, lost, repeat, temperature)
        self._take(positions)
        self._numbers[: len(lost)] = lost
        return self._changed(row, len(lost), Penalty(0.0, 1.0, repeat), temperature)[1]

    def penalize(
        self, row: Row, ids: np.ndarray, penalty: Penalty, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self._can_read(row):
            return super().penalize(row, ids, penalty, temperature)
        self._take(ids)
        found = self._positions_at, self._found_at, self._numbers_at, self._counts_at
        self._kernel(records.COUNT_TOKENS).run(1, len(row.logits), len(ids), *found)
        return self._changed(row, int(self._found[0]), penalty, temperature)

    def repeated(self, ids: np.ndarray, limit: int, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        self._make_room(len(ids))
        found = self._positions_at, self._found_at, self._numbers_at
        self._kernel(records.REPEATED).run(1, len(ids), address_of(ids), limit, allowed, *found)
        n = int(self._found[0])
        return self._positions[:n].copy(), self._numbers[:n].copy()

    def _take(self, ids: np.ndarray) -> None:
        self._make_room(len(ids))
        self._positions[: len(ids)] = ids

    def _changed(self, row: Row, n: int, penalty: Penalty, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Change n logits, those whose positions and numbers stand where there is room for them."""
        presence, frequency, repeat = penalty
        found = self._positions_at, self._numbers_at, presence, frequency, self._logits_at
        self._run(records.GROUP_CHANGE, row, temperature, repeat, n, *found)
        return self._positions[:n].copy(), self._logits[:n].copy()

    def _can_read(self, row: Row) -> bool:
        """What kernels can."""
        logits = row.logits
        if logits.dtype != np.float32 or not logits.flags.c_contiguous or not row.maxima.flags.c_contiguous:
            return False
        self._make_room(len(logits))
        return True

    def _at(self, name: str, array: np.ndarray) -> int:
        """Where an array is: asked for again and again of one array, and slow to find out."""
        seen = self._seen.get(name)
        if seen is None or seen[0] is not array:
            seen = self._seen[name] = array, address_of(array)
        return seen[1]

    def _run(self, schema: Schema, row: Row, *others: float) -> None:
        """The kernel of a schema, with the words of its record that come after those of the row."""
        words = self._every_at if row.words is None else self._at("words", row.words)
        x, maxima = self._at("logits", row.logits), self._at("maxima", row.maxima)
        self._kernel(schema).run(_n_chunks(row), x, len(row.logits), words, maxima, self._rest_at, *others)

    def _kernel(self, schema: Schema) -> _Kernel:
        found = self._kernels.get(schema.name)
        if found is None:
            found = self._kernels[schema.name] = _Kernel(schema, self._store, self._team)
        return found


def _n_chunks(row: Row) -> int:
    return -(-len(row.maxima) // GROUPS_TOGETHER)


class _Kernel:
    """A kernel with a record of its own, and a program for the team that consists of it alone."""

    def __init__(self, schema: Schema, store: KernelStore, team: Team | None) -> None:
        kernel = find(schema.name)
        store.load([kernel])
        self._function = store.function(kernel)
        self._team = team
        self._is_in_chunks = schema in IN_CHUNKS
        self._words = schema.new()
        self._bytes = self._words.view(np.uint8).data
        self._at = self._words.ctypes.data
        self._packing = Struct("=" + "".join("d" if kind == "f64" else "q" for kind in schema.fields.values()))
        if team is not None and self._is_in_chunks:
            op = self._op = OP.new()
            op["kernel"], op["record"] = store.address(kernel), self._at
            self._n_chunks = np.zeros(1, np.int64)
            self.record = PROGRAM.new()
            self.record["ops"], self.record["n_ops"] = op.ctypes.data, 1
            self.record["n_chunks"] = self._n_chunks.ctypes.data
            self._record_at = self.record.ctypes.data

    def run(self, n_chunks: int, *words: float) -> None:
        self._packing.pack_into(self._bytes, 0, *words)
        if not self._is_in_chunks:
            self._function(self._at, 0, 0)
        elif self._team is None or n_chunks < FEW_CHUNKS:
            for chunk in range(n_chunks):
                self._function(self._at, chunk, 0)
        else:
            self._n_chunks[0] = n_chunks
            self._team.run_short(self, self._record_at)
