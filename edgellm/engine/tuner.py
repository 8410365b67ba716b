"""Measuring, once for every machine and format of weights, which settings are quickest (see `graph.tuning`).

The work is that of a model: linear layers over weights that no cache holds, for one token and for a few. Candidates
take turns, so that whatever else the machine does hits all of them; the default stays unless another one is clearly
quicker in every turn. What is measured on a busy machine is then mostly the default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgellm.files import private
from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Team
from edgellm.graph.program import aligned, kernels_of
from edgellm.graph.team import KERNELS
from edgellm.graph.tuning import Tuning
from edgellm.kernels.store import KernelStore
from edgellm.machine import available_memory, default_threads, usable_threads
from edgellm.quants import BlockFormat

T = TypeVar("T")

WEIGHT_BYTES = 1 << 26  # beyond most last level caches
N_COLS, N_ROWS = 2048, 2048  # of a matrix
TURNS = 4
CLEARLY = 0.96  # of the default's time: what less gains may be chance
# Another number of threads must gain far more: who measures on a busy machine should not be left with one thread.
CLEARLY_OTHER_THREADS = 0.75
CHUNK_BYTES = (1 << 15, 1 << 17, 1 << 21)
AHEAD_BYTES = (1 << 12, 1 << 14, 1 << 15)
FEW_TOKENS = (2, 4, 6, 8)


def remembered(store: KernelStore, weights: BlockFormat, n_threads: int | None = None) -> Tuning | None:
    """What was measured before, with the number of threads that somebody wants; None on a first start."""
    tuning = Tuning.load(_path(store, weights))
    return tuning and _with_threads(tuning, n_threads)


def measure_and_remember(store: KernelStore, weights: BlockFormat, n_threads: int | None = None) -> Tuning:
    """Measure, in about a second, and keep the settings beside the kernels.

    weights:  the format that most of a model's weights have.
    """
    private.prepare(store.folder)
    tuning = measure(store, weights)
    tuning.save(_path(store, weights))
    return _with_threads(tuning, n_threads)


def forget(store: KernelStore) -> None:
    """Measure again at the next start."""
    for path in store.folder.glob("tuning.*.json"):
        path.unlink(missing_ok=True)


def _path(store: KernelStore, weights: BlockFormat) -> Path:
    """What was measured in a container, or pinned to few cores, says nothing of the whole machine."""
    return store.folder / f"tuning.{weights}.{usable_threads()}.json"


def _with_threads(tuning: Tuning, n_threads: int | None) -> Tuning:
    return tuning if n_threads is None else replace(tuning, n_threads=n_threads)


def measure(store: KernelStore, weights: BlockFormat) -> Tuning:
    """Find the settings, one after the other, each with those found before."""
    work = _Work(store, weights, min(WEIGHT_BYTES, available_memory() // 4))
    tuning = Tuning(default_threads())
    tuning = work.best(
        tuning, [replace(tuning, n_threads=n) for n in _thread_counts(tuning.n_threads)], CLEARLY_OTHER_THREADS
    )
    tuning = work.best(tuning, [replace(tuning, chunk_bytes=n) for n in CHUNK_BYTES])
    tuning = work.best(tuning, [replace(tuning, ahead_bytes=n) for n in AHEAD_BYTES])
    return replace(tuning, few_tokens=work.few_tokens(tuning))


def _thread_counts(default: int) -> list[int]:
    """Other numbers of threads worth a try: one for every logical core, one core left to others, half of them."""
    return sorted({usable_threads(), max(1, default - 1), max(1, default // 2)} - {default})


class _Work:
    """Programs of linear layers, and how long they take."""

    def __init__(self, store: KernelStore, weights: BlockFormat, n_bytes: int) -> None:
        self.store, self.format = store, weights
        self.n_cols = -(-N_COLS // weights.block_size) * weights.block_size
        row_bytes = weights.row_bytes(self.n_cols)
        self.memory = aligned(max(1, n_bytes // (N_ROWS * row_bytes)) * N_ROWS * row_bytes)
        self.memory.fill(1)  # else all pages would be the same page of zeros
        self.matrices = [
            Tensor(f"matrix {i}", (N_ROWS, self.n_cols), weights, raw)
            for i, raw in enumerate(self.memory.reshape(-1, N_ROWS, row_bytes))
        ]

    def best(self, default: Tuning, others: Sequence[Tuning], clearly: float = CLEARLY) -> Tuning:
        """The quickest for one token, or the default when none is clearly quicker."""
        if not others:
            return default
        programs = {tuning: _Runnable(self, tuning) for tuning in (default, *others)}
        try:
            turns = _take_turns({tuning: program.run for tuning, program in programs.items()})
        finally:
            for program in programs.values():
                program.team.close()
        # At its worst against the default of the same turn.
        worst = {tuning: max(turn[tuning] / turn[default] for turn in turns) for tuning in others}
        best = min(others, key=lambda tuning: worst[tuning])
        return best if worst[best] < clearly else default

    def few_tokens(self, tuning: Tuning) -> int:
        """Up to how many tokens the kernel for a few is quicker than the one for many."""
        few, many = (_Runnable(self, replace(tuning, few_tokens=n)) for n in (max(FEW_TOKENS), 1))
        try:
            found = 1
            for n_tokens in sorted({*FEW_TOKENS, tuning.few_tokens}):
                turns = _take_turns({program: partial(program.run, n_tokens) for program in (few, many)})
                if min(turn[few] for turn in turns) > min(turn[many] for turn in turns):
                    break
                found = n_tokens
            return found
        finally:
            few.team.close()
            many.team.close()


@dataclass(eq=False)
class _Runnable:
    """All matrices by one input, as a program with these settings."""

    work: _Work
    tuning: Tuning

    def __post_init__(self) -> None:
        graph = Graph(self.work.store.isa, self.tuning)
        x = graph.input(self.work.n_cols)
        for matrix in self.work.matrices:
            graph.output(graph.linear(x, matrix))
        self.work.store.load([*kernels_of(graph), *KERNELS])
        self.team = Team(self.work.store, self.tuning.n_threads, len(graph.ops))
        self._input = np.ones((16, x.stride), np.float32)
        inputs = {x: self._input.ctypes.data}
        self._program = Program(graph, self.work.store, Batch(max(FEW_TOKENS), [], []), self.team, inputs=inputs)

    def run(self, n_tokens: int = 1) -> None:
        self._program.run({"tokens": n_tokens})


def _take_turns(candidates: dict[T, Callable[[], None]]) -> list[dict[T, float]]:
    """Seconds that each takes in every turn; the turn before the first warms up."""
    turns = []
    for _ in range(TURNS + 1):
        seconds = {}
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - started
        turns.append(seconds)
    return turns[1:]
