"""A recorded graph made ready to run: records filled in, memory planned, kernels found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from edgellm.errors import MemoryLimitError, UsageError
from edgellm.graph.builder import MAX_SPLITS, Graph, Rope
from edgellm.graph.chains import CHAIN, chained
from edgellm.graph.ops import Buffer, Chunks, Op, Quantized, Table, Value
from edgellm.graph.plan import dependencies, plan
from edgellm.graph.team import Team
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel
from edgellm.kernels.store import KernelStore

# Tiles may write up to so many tokens at once, beyond the end of a batch too.
TOKEN_ALIGN = 16
LINE = 64
SOON_BYTES = 65536  # of weights asked for ahead of an op


def aligned(n_bytes: int) -> np.ndarray:
    """uint8 [n_bytes] on a cache line. The system gives the memory as it is first touched."""
    memory = np.empty(n_bytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + n_bytes]


def _arena(n_bytes: int, n_tokens: int) -> np.ndarray:
    """Memory for all values of a batch of so many tokens. Raises MemoryLimitError when there is not enough."""
    memory = psutil.virtual_memory().total
    if n_bytes <= 0.9 * memory:
        with suppress(MemoryError):  # there may be less than the machine has
            return aligned(n_bytes)
    raise MemoryLimitError(
        f"a batch of {n_tokens} tokens needs {n_bytes / 1e9:.1f} GB; this machine has {memory / 1e9:.1f} GB, "
        f"and not all of it may be free: choose a smaller n_batch",
        parameter="n_batch",
    )


class Batch:
    """The data of one run: token ids, positions, where keys go, and what each token attends to.

    Programs hold the addresses of these arrays, so they are filled in place and never moved.
    """

    def __init__(self, capacity: int, ropes: list[Rope], windows: list[int | None]) -> None:
        self.capacity = capacity
        self.ropes, self.windows = ropes, windows
        self.token_ids = np.zeros(capacity, np.int32)
        self.kv_slots = np.zeros(capacity, np.int64)
        self.rows = np.zeros(capacity, np.int64)
        self.rope_tables = [np.zeros((capacity, 2, len(rope.frequencies)), np.float32) for rope in ropes]
        self.tasks = [records.ATTENTION_TASK.new(capacity + MAX_SPLITS) for _ in windows]
        self.merges = [records.MERGE_TASK.new(capacity) for _ in windows]
        self.record = records.BATCH.new()
        self.record["token_ids"] = self.token_ids.ctypes.data
        self.record["kv_slots"] = self.kv_slots.ctypes.data
        self.record["rows"] = self.rows.ctypes.data

    def turn(self, positions: np.ndarray) -> None:
        """Fill the rope tables for the positions of the tokens."""
        for rope, table in zip(self.ropes, self.rope_tables, strict=True):
            angles, turned = np.multiply.outer(positions, rope.frequencies), table[: len(positions)]
            np.cos(angles, out=turned[:, 0], casting="same_kind")
            np.sin(angles, out=turned[:, 1], casting="same_kind")

    def tables(self) -> dict[str, int]:
        """Addresses by the names that records use."""
        result = {"batch": self.record.ctypes.data}
        for rope, table in zip(self.ropes, self.rope_tables, strict=True):
            result[rope.table.name] = table.ctypes.data
        for kind, (tasks, merges) in enumerate(zip(self.tasks, self.merges, strict=True)):
            result[f"tasks {kind}"] = tasks.ctypes.data
            result[f"merges {kind}"] = merges.ctypes.data
        return result


class Program:
    """The ops of a graph as records in memory, for batches of up to `capacity` tokens.

    tables:    addresses of what the graph names but does not own, beside the batch's: "cache 0", ...
    inputs:    memory for the graph's inputs; the first row's address of each.
    """

    def __init__(
        self,
        graph: Graph,
        store: KernelStore,
        batch: Batch,
        team: Team,
        tables: Mapping[str, int] | None = None,
        inputs: Mapping[Value, int] | None = None,
    ) -> None:
        self.steps = chained(graph.ops)
        if len(self.steps) > team.max_ops:
            raise UsageError(f"a program of {len(self.steps)} ops for a team that can run {team.max_ops}")
        self.graph = graph  # keeps converted weights alive
        self.batch = batch
        self._store = store
        self.team = team
        self.capacity = -(-batch.capacity // TOKEN_ALIGN) * TOKEN_ALIGN
        self._offsets, size = plan(self.steps, [b for b in graph.outputs if b not in (inputs or {})], self.capacity)
        self.arena = _arena(size, batch.capacity)
        self._inputs = dict(inputs or {})
        scratch_bytes = -(-max(op.scratch_bytes for op in self.steps) // LINE) * LINE
        self._scratch = aligned(scratch_bytes * team.n_threads)
        self._tables = {**batch.tables(), **(tables or {})}

        self._keep: list[np.ndarray] = []
        self._records = [self._record(op, scratch_bytes) for op in self.steps]
        self.ops = records.OP.new(len(self.steps))
        self.ops["depends"] = dependencies(self.steps, self._offsets, self.capacity)
        self.ops["record"] = [record.ctypes.data for record in self._records]
        self._kernels = np.array([store.address(op.kernel) for op in self.steps])
        self._kernels_few = np.array([store.address(op.kernel_few or op.kernel) for op in self.steps])

        rules: dict[Chunks, list[int]] = {}
        for index, op in enumerate(self.steps):
            rules.setdefault(op.chunks, []).append(index)
        self._rules = [(rule, np.array(indices)) for rule, indices in rules.items()]
        self.n_chunks = np.zeros(len(self.steps), np.int64)
        self._counts: dict[str, int] = {}  # of the last run
        self._foresee()
        self.record = records.PROGRAM.new()
        self.record["ops"], self.record["n_ops"] = self.ops.ctypes.data, len(self.steps)
        self.record["n_chunks"] = self.n_chunks.ctypes.data

    def run(self, counts: Mapping[str, int]) -> None:
        """Run all ops for the batch as it stands; `counts` says how many of everything it has."""
        if counts != self._counts:
            self._counts = {}  # Ctrl-C may come before all is written
            few = counts["tokens"] <= self.graph.tuning.few_tokens
            self.ops["kernel"] = self._kernels_few if few else self._kernels
            self.ops["soon_bytes"] = SOON_BYTES if few else 0
            for rule, indices in self._rules:
                self.n_chunks[indices] = rule.of(counts, few)
            self.batch.record["n_tokens"] = counts["tokens"]
            self._counts = dict(counts)
        self.team.run(self)

    def view(self, value: Value, n_tokens: int) -> np.ndarray:
        """An output as float32 [n_tokens, width]: a view of the arena, which the next run overwrites."""
        start = self._offsets[value]
        rows = self.arena[start : start + n_tokens * value.token_bytes].view(np.float32)
        return rows.reshape(n_tokens, value.stride)[:, : value.width]

    def address(self, buffer: Buffer) -> int:
        if isinstance(buffer, Value) and buffer in self._inputs:
            return self._inputs[buffer]
        return self.arena.ctypes.data + self._offsets[buffer]

    def replace_weights(self, old: int, new: int) -> None:
        """From now on, ops that read weights at the address `old` read them at `new`, in the same format."""
        for op, record in zip(self.steps, self._records, strict=True):
            if "weights" in op.fields and record["weights"] == old:
                record["weights"] = new

    def _foresee(self) -> None:
        """Tell every op what it may ask for in advance: the weights of the next op that has any, or its own chunks."""
        soon, step = 0, 0
        for index in reversed(range(len(self.steps))):
            op, record = self.steps[index], self._records[index][0]
            if op.schema is records.LINEAR:
                record["then"], record["then_step"] = soon or record["weights"], step
                soon, step = int(record["weights"]), op.fields["chunk_rows"] * op.fields["row_bytes"]
            elif op.schema is records.ATTENTION:
                record["chunk_count"] = self.n_chunks[index:].ctypes.data
            self.ops[index]["soon"], self.ops[index]["soon_step"] = soon, step

    def _record(self, op: Op, scratch_bytes: int) -> np.ndarray:
        record = op.schema.new()
        record["batch"] = self._tables["batch"]
        if op.scratch_bytes:
            record["scratch"], record["scratch_bytes"] = self._scratch.ctypes.data, scratch_bytes
        for name, content in op.fields.items():
            record[name] = self._word(content)
        if op.links:
            record["links"] = self._links(op.links, scratch_bytes)
        return record

    def _links(self, ops: list[Op], scratch_bytes: int) -> int:
        links = records.LINK.new(len(ops))
        for link, op in zip(links, ops, strict=True):
            record = self._record(op, scratch_bytes)
            link["kernel"], link["record"] = self._store.address(op.kernel), record.ctypes.data
            self._keep.append(record)
        self._keep.append(links)
        return links.ctypes.data

    def _word(self, content: Any) -> Any:
        if isinstance(content, Table):
            return self._tables[content.name]
        if isinstance(content, Quantized):
            return self._quantized_record(content)
        return self.address(content) if isinstance(content, Buffer) else content

    def _quantized_record(self, quantized: Quantized) -> int:
        record = records.QUANTIZED.new()
        self._keep.append(record)
        start = self.address(quantized)
        for name, token_bytes in quantized.parts.items():
            record[name] = start
            start += token_bytes * self.capacity
        return record.ctypes.data


def kernels_of(graph: Graph) -> list[Kernel]:
    """The kernels that a graph's ops call."""
    return [CHAIN, *(kernel for op in graph.ops for kernel in (op.kernel, op.kernel_few) if kernel)]
