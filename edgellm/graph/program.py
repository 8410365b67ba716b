"""Lowered ops made ready to run: records filled in, memory planned, kernels found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from edgellm.errors import MemoryLimitError, UsageError, size_text
from edgellm.formats.tensor import Tensor
from edgellm.graph.batch import Batch
from edgellm.graph.lowering import Lowered
from edgellm.graph.nodes import Value
from edgellm.graph.ops import Buffer, Chunks, Op, Packed, Quantized, Rows, Table, Tiled
from edgellm.graph.plan import dependencies, plan
from edgellm.graph.record_memory import RecordMemory, aligned, gathered
from edgellm.graph.team import Team
from edgellm.kernels import records
from edgellm.kernels.low_rank_records import NARROW_INT8
from edgellm.kernels.records import MOST_CHUNKS
from edgellm.kernels.schema import LINE
from edgellm.kernels.store import KernelStore
from edgellm.machine import total_memory
from edgellm.quants.tiles import to_tiles

# Tiles may write up to so many tokens at once, beyond the end of a batch too.
TOKEN_ALIGN = 16
MOST_OF_MEMORY = 0.9  # for the values of a batch
_ELSEWHERE = (Tensor, Tiled, Rows)  # what `Program.bind` can have read elsewhere
_NO_VIEW = (-1, np.empty((0, 0), np.float32))
PREFETCH_BYTES = 65536  # of weights, by threads that wait for the op that reads them
# Of matrices that one thread reads, asked for when their op begins: as many as fit into a first level cache beside its
# rows. Where linears ask for what comes next into the second level, a core drops some of it.
FIRST_BYTES = 16384


def _arena(n_bytes: int, n_tokens: int) -> np.ndarray:
    """Memory for all values of a batch of so many tokens. Raises MemoryLimitError when there is not enough."""
    memory = total_memory()
    if n_bytes <= MOST_OF_MEMORY * memory:
        with suppress(MemoryError):  # there may be less than the machine has
            return aligned(n_bytes)
    raise MemoryLimitError(
        f"a batch of {n_tokens} tokens needs {size_text(n_bytes)}; this process may have {size_text(memory)}, "
        f"and not all of it may be free: choose a smaller n_batch",
        parameter="n_batch",
    )


class RowMemory:
    """Memory for rows of a value that comes from outside of a program."""

    def __init__(self, width: int, n_tokens: int) -> None:
        rows, n = Rows(width), -(-n_tokens // TOKEN_ALIGN) * TOKEN_ALIGN
        self.array = aligned(n * rows.token_bytes).view(np.float32).reshape(-1, rows.stride)
        self.array[...] = 0
        self.width, self.address = width, self.array.ctypes.data

    def fill(self, rows: np.ndarray) -> None:
        self.array[: len(rows), : self.width] = rows


class Program:
    """Lowered ops as records in memory, for batches of up to `capacity` tokens.

    tables:    addresses of what ops name but a batch does not have: the layers of the cache.
    inputs:    memory for the values that come from outside, and for others that can be read after a run and are to be
               elsewhere; the address of each one's first row.
    """

    def __init__(
        self,
        lowered: Lowered,
        store: KernelStore,
        batch: Batch,
        team: Team,
        tables: Mapping[str, int] | None = None,
        inputs: Mapping[Value, int] | None = None,
    ) -> None:
        self.lowered, self.steps = lowered, lowered.steps
        if len(self.steps) > team.max_ops:
            raise UsageError(f"a program of {len(self.steps)} ops for a team that can run {team.max_ops}")
        self.batch = batch
        self.team = team
        self._store = store
        self.capacity = -(-batch.capacity // TOKEN_ALIGN) * TOKEN_ALIGN
        self._inputs = {lowered.rows[value]: address for value, address in (inputs or {}).items()}
        kept = [
            rows for value, rows in lowered.rows.items() if value not in lowered.outside and rows not in self._inputs
        ]
        self._offsets, size = plan(self.steps, kept, self.capacity, outside=self._inputs)
        self.arena = _arena(size, batch.capacity)
        self._arena_start = self.arena.ctypes.data
        scratch_bytes = -(-max((op.scratch_bytes for op in lowered.ops), default=0) // LINE) * LINE
        self._scratch = aligned(scratch_bytes * team.n_threads)
        self._tables = {**batch.tables(), **(tables or {})}

        self._packed, self._packed_at = gathered(self.steps)
        self._memory = RecordMemory()
        self._places: dict[Any, list[tuple[np.ndarray, str]]] = {}  # where records name a tensor, its tiles or an input
        self._bound_tiles: dict[Tensor, np.ndarray] = {}
        self._part_records: dict[Op, np.ndarray] = {}
        self.ops = records.OP.new(len(self.steps))
        self._records = []
        for op, words in zip(self.steps, self.ops, strict=True):
            self._memory.begin_op()
            self._records.append(self._record(op, scratch_bytes))
            words["own"], words["own_lines"] = self._memory.op_span
        self.ops["depends"] = dependencies(self.steps, self._offsets, self.capacity)
        self.ops["record"] = [record.ctypes.data for record in self._records]
        self._kernels = np.array([store.address(op.kernel) for op in self.steps])
        self._small_kernels = np.array([store.address(op.kernel_when_small) for op in self.steps])

        rules: dict[Chunks, list[int]] = {}
        for index, op in enumerate(self.steps):
            rules.setdefault(op.chunks, []).append(index)
        self._rules = [(rule, np.array(indices)) for rule, indices in rules.items()]
        self.n_chunks = np.zeros(len(self.steps), np.int64)
        self._counts: dict[str, int] = {}  # of the last run
        self._small_batch = lowered.target.small_batch
        self._views: dict[Value, tuple[int, np.ndarray]] = {}  # the last of each value, for its number of tokens
        self._plan_prefetches()
        self.record = records.PROGRAM.new()
        self.record["ops"], self.record["n_ops"] = self.ops.ctypes.data, len(self.ops)
        self.record["n_chunks"] = self.n_chunks.ctypes.data

    def run(self, counts: Mapping[str, int], stop: Callable[[], bool] | None = None) -> bool:
        """Run all ops for the batch as it stands; `counts` says how many of everything it has.

        stop:  asked now and then while many tokens are computed, whether they are still wanted. If not, the run ends
               at once and this returns False.
        """
        if self.prepare(counts):
            self.team.run(self)
            return True
        return self.team.run_in_slices(self, stop)

    def prepare(self, counts: Mapping[str, int]) -> bool:
        """Have records say what the next run computes; returns whether it is a short one, of few tokens."""
        is_small = counts["tokens"] <= self._small_batch
        if counts != self._counts:
            self._counts = {}  # Ctrl-C may come before all is written
            self.ops["kernel"] = self._small_kernels if is_small else self._kernels
            self.ops["prefetch_bytes"] = PREFETCH_BYTES if is_small else 0
            self.ops["first_lines"] = self._first_lines if is_small else 0
            for rule, indices in self._rules:
                self.n_chunks[indices] = rule.of(counts, is_small)
            if self.n_chunks.max(initial=0) > MOST_CHUNKS * self.team.n_threads:
                raise UsageError(
                    f"a batch of {counts['tokens']} tokens is too large for one run: choose a smaller n_batch"
                )
            self._counts = dict(counts)
        self.batch.n_tokens[0] = counts["tokens"]  # other programs of this batch may have run since
        return is_small

    def view(self, value: Value, n_tokens: int) -> np.ndarray:
        """A kept value as float32 [n_tokens, width]: a view of the arena, which the next run overwrites."""
        n_before, found = self._views.get(value, _NO_VIEW)
        if n_tokens == n_before:
            return found
        rows = self.lowered.rows[value]
        start = self._offsets[rows]
        numbers = self.arena[start : start + n_tokens * rows.token_bytes].view(np.float32)
        found = numbers.reshape(n_tokens, rows.stride)[:, : rows.width]
        self._views[value] = n_tokens, found
        return found

    def address(self, value: Value) -> int:
        """Where the rows of a value start, that is kept or comes from outside."""
        return self._address(self.lowered.rows[value])

    def bind(self, memory: Mapping[Tensor | Value, np.ndarray]) -> None:
        """From now on, read weights and inputs elsewhere: bytes of the same format and size, or such rows.

        What a program does not read is passed over. Nobody may be running it, and the arrays must stay alive.
        """
        for content, array in memory.items():
            for record, name in self._places_of(content):
                record[name] = array.ctypes.data
            if isinstance(content, Tensor):
                self._bind_tiles(content, array)
            if isinstance(content, Tensor) and content in self.lowered.constants:
                numbers = content.format.dequantize(array.reshape(content.raw.shape))
                self.lowered.constants[content][...] = numbers.reshape(content.shape)

    @contextmanager
    def bound(self, memory: Mapping[Tensor | Value, np.ndarray]) -> Iterator[None]:
        """The same for a while."""
        contents = [*memory, *(Tiled(content) for content in memory if isinstance(content, Tensor))]
        before = [
            (record, name, int(record[name][0])) for content in contents for record, name in self._places_of(content)
        ]
        constants = {tensor: numbers.copy() for tensor, numbers in self.lowered.constants.items() if tensor in memory}
        try:
            self.bind(memory)
            yield
        finally:
            for record, name, address in before:
                record[name] = address
            for tensor, numbers in constants.items():
                self.lowered.constants[tensor][...] = numbers
            for content in memory:
                self._bound_tiles.pop(content, None)  # type: ignore[arg-type]

    def _bind_tiles(self, tensor: Tensor, raw: np.ndarray) -> None:
        """Where tiles are read, they are made of the bytes that are bound."""
        if places := self._places_of(Tiled(tensor)):
            tiles = self._bound_tiles[tensor] = to_tiles(tensor.format, raw.reshape(tensor.raw.shape))
            for record, name in places:
                record[name] = tiles.ctypes.data

    def _places_of(self, content: Tensor | Tiled | Value) -> list[tuple[np.ndarray, str]]:
        key = self.lowered.rows.get(content) if isinstance(content, Value) else content
        return self._places.get(key, [])

    def _plan_prefetches(self) -> None:
        """Tell every op which weights come next: those of the next op that has any, or its own next chunks.

        What is a single chunk is the first thread's: it prefetches that (`first`), and the others what comes behind it.
        """
        weights, step, n_chunks, first = 0, 0, 0, 0
        prefetches = []
        self._first_lines = np.zeros(len(self.steps), np.int64)
        for index in reversed(range(len(self.steps))):
            parts = self.steps[index].parts or [self.steps[index]]
            narrow = [part.fields["weight"] for part in parts if part.schema is NARROW_INT8]
            if narrow:
                first = self._packed_at[narrow[0]]
                if self.lowered.target.isa.stream_level == 2:
                    self._first_lines[index] = min(FIRST_BYTES, sum(packed.n_bytes for packed in narrow)) // LINE
            for op in parts:
                record = self._part_records.get(op, self._records[index])
                if op.schema is records.LINEAR:  # one at most: it comes before what is added to it
                    own = int(record["weights"][0])
                    record["next_weights"], record["next_first"] = weights or own, first
                    record["next_step"], record["next_chunks"] = step, n_chunks
                    if op.chunks.small_batch == 1:
                        first = own
                    else:
                        weights, step, first = own, op.fields.get("chunk_rows", 0) * op.fields["row_bytes"], 0
                        n_chunks = op.chunks.small_batch or 0
                elif op.schema is records.ATTENTION:
                    record["chunk_count"] = self.n_chunks[index:].ctypes.data
            prefetches.append((weights, step, n_chunks, first))
        columns = np.array(prefetches[::-1], np.int64).reshape(-1, 4).T
        names = ("prefetch", "prefetch_step", "prefetch_chunks", "prefetch_first")
        for name, words in zip(names, columns, strict=True):
            self.ops[name] = words

    def _record(self, op: Op, scratch_bytes: int) -> np.ndarray:
        words = {"batch": self._tables["batch"]}
        if op.scratch_bytes:
            words["scratch"], words["scratch_bytes"] = self._scratch.ctypes.data, scratch_bytes
        elsewhere = []
        for name, content in op.fields.items():
            if isinstance(content, int):  # most of them
                words[name] = content
                continue
            words[name] = self._word(content)
            if isinstance(content, _ELSEWHERE):
                elsewhere.append((content, name))
        if op.parts:
            words["parts"] = self._parts(op.parts, scratch_bytes)
        record = self._memory.filled(op.schema, words)
        for content, name in elsewhere:
            self._places.setdefault(content, []).append((record, name))
        return record

    def _parts(self, ops: list[Op], scratch_bytes: int) -> int:
        own = [self._part_records[op] if op in self._part_records else self._record(op, scratch_bytes) for op in ops]
        parts = self._memory.new(records.FUSED_PART, len(ops))
        parts["kernel"] = [self._store.address(op.kernel) for op in ops]
        parts["asking"] = [self._store.address(op.asking) if op.asking else 0 for op in ops]
        small = [0 if op.is_only_large else self._store.address(op.kernel_when_small) for op in ops]
        parts["small_kernel"] = small
        parts["record"] = [record.ctypes.data for record in own]
        self._part_records.update(zip(ops, own, strict=True))
        return parts.ctypes.data

    def _word(self, content: Any) -> Any:
        if isinstance(content, Table):
            return self._tables[content.name]
        if isinstance(content, Tensor):
            copy = self.lowered.target.copies.get(content)
            return content.address if copy is None else copy.ctypes.data
        if isinstance(content, Packed):
            return self._packed_at[content]
        if isinstance(content, Op):
            record = self._part_records[content] = self._record(content, 0)
            return record.ctypes.data
        if isinstance(content, Tiled):
            content = content.tiles
        if isinstance(content, np.ndarray):
            return content.ctypes.data
        if isinstance(content, Quantized):
            return self._quantized_record(content)
        return self._address(content) if isinstance(content, Buffer) else content

    def _address(self, buffer: Buffer) -> int:
        if isinstance(buffer, Rows) and buffer in self._inputs:
            return self._inputs[buffer]
        return self._arena_start + self._offsets[buffer]

    def _quantized_record(self, quantized: Quantized) -> int:
        words, start = {}, self._address(quantized)
        for name, token_bytes in quantized.parts.items():
            words[name] = start
            start += token_bytes * self.capacity
        return self._memory.filled(records.QUANTIZED, words).ctypes.data
