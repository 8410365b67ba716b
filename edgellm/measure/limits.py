"""The limits of this machine, measured by compiled kernels with the same team of threads that runs the model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from edgellm.graph import Batch, Graph, Program, Target, Team, Tuning, lower
from edgellm.graph.ops import Chunks, Op
from edgellm.graph.program import aligned
from edgellm.kernels import records
from edgellm.kernels.records import S_PER_STEP, S_REGISTERS, U_REGISTERS
from edgellm.kernels.registry import find
from edgellm.kernels.schema import Schema
from edgellm.kernels.store import KernelStore
from edgellm.machine import beyond_caches

ROUNDS = 6  # of what it can do at best, the quickest: whatever else the machine does can only take away
LOOKS = 5  # at what it can do at a moment
READ_BYTES = 1 << 28  # far beyond most caches
READ_CHUNK_BYTES = 1 << 18
# Ways to read, of which the best counts: (bytes ahead, lines of a page that are asked for). Some machines like to be
# asked for every line, a little ahead or a chunk for every thread; others see a stream by themselves, within a page.
NEAR, ALL, STARTS = 4096, 64, 4
MULTIPLY_CHUNKS = 64  # for every thread
MULTIPLY_STEPS = 2048  # in a chunk: some ten microseconds


@dataclass(frozen=True)
class Limits:
    """What all threads together can do in a second.

    read_bytes:  bytes read from memory, one after the other.
    macs:        products of bytes added into 32 bits, on operands that wait in registers and first level caches; AMX,
                 which prefill may use, is not asked.
    """

    read_bytes: float
    macs: float

    def or_better(self, other: Limits) -> Limits:
        return Limits(max(self.read_bytes, other.read_bytes), max(self.macs, other.macs))


def measure_limits(store: KernelStore, team: Team) -> Limits:
    """Takes about half a second, and some 256 MB for that time; more where caches are that large."""
    return Limits(ReadStream(store, team).best, _macs(store, team))


class ReadStream:
    """Memory far beyond the caches, read from one end to the other in the way that is quickest here.

    best:  bytes a second of the quickest run.
    """

    def __init__(self, store: KernelStore, team: Team) -> None:
        self._n_chunks = max(1, beyond_caches(READ_BYTES) // READ_CHUNK_BYTES)
        self.n_bytes = self._n_chunks * READ_CHUNK_BYTES
        self._memory = aligned(self.n_bytes)
        self._memory.fill(1)  # else all pages would be the same page of zeros
        self._sums = np.zeros(self._n_chunks, np.int64)
        ways: dict[Program, list[float]] = {
            _program(
                store,
                team,
                "read_limit",
                records.READ_LIMIT,
                memory=self._memory.ctypes.data,
                chunk_bytes=READ_CHUNK_BYTES,
                prefetch=prefetch,
                page_lines=page_lines,
                sums=self._sums.ctypes.data,
            ): []
            for prefetch, page_lines in (
                (NEAR, ALL),
                (team.n_threads * READ_CHUNK_BYTES, ALL),
                (2 * NEAR, STARTS),
                (4 * NEAR, STARTS),
                (0, 0),
            )
        }
        for _ in range(ROUNDS):
            for way, seconds in ways.items():
                seconds.append(_seconds(way, self._n_chunks))
        self._way = min(ways, key=lambda way: median(ways[way]))
        self.best = self.n_bytes / min(min(seconds) for seconds in ways.values())

    def now(self) -> float:
        """Bytes a second of the usual run at this moment: what others leave of memory changes by the minute."""
        return self.n_bytes / median(_seconds(self._way, self._n_chunks) for _ in range(LOOKS))


def _macs(store: KernelStore, team: Team) -> float:
    register_bytes = store.isa.lanes * 4
    # Distinct bytes, so that none of the products can be saved.
    u = np.arange(U_REGISTERS * register_bytes, dtype=np.uint8) & 127
    s = np.arange(S_REGISTERS * register_bytes).astype(np.int8)
    n_chunks = MULTIPLY_CHUNKS * team.n_threads
    sums = np.zeros(n_chunks, np.int64)
    program = _program(
        store,
        team,
        "multiply_limit",
        records.MULTIPLY_LIMIT,
        u=u.ctypes.data,
        s=s.ctypes.data,
        n_steps=MULTIPLY_STEPS,
        sums=sums.ctypes.data,
    )
    seconds = min(_seconds(program, n_chunks) for _ in range(ROUNDS))
    return n_chunks * MULTIPLY_STEPS * U_REGISTERS * S_PER_STEP * register_bytes / seconds


def _program(store: KernelStore, team: Team, name: str, schema: Schema, **fields: int) -> Program:
    """An op of some chunks as a program of its own."""
    lowered = lower(Graph(), Target(store.isa, Tuning(team.n_threads)))
    lowered.ops.append(Op(find(name), schema, fields, Chunks("chunks")))
    store.load(lowered.kernels)
    return Program(lowered, store, Batch(1, lowered), team)


def _seconds(program: Program, n_chunks: int) -> float:
    started = time.perf_counter()
    program.run({"tokens": 0, "chunks": n_chunks})
    return time.perf_counter() - started
