"""Which settings are quickest, measured once for every machine and kind of weights (see `graph.tuning`).

The work is that of a model: linear layers over weights that no cache holds, for one token and for small batches. Rows
are as long as those of its weights, and inputs as fine: whether tiles are worth their room goes by both.
Candidates take turns, so that whatever else the machine does hits all of them; the default stays unless another one
is clearly quicker in every turn. What is measured on a busy machine is then mostly the default. It serves as long as
the machine is busy: the first start that finds it quiet measures again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgellm.files import private
from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Target, Team, lower
from edgellm.graph.nodes import linear
from edgellm.graph.ops import Rows
from edgellm.graph.program import TOKEN_ALIGN, aligned
from edgellm.graph.team import KERNELS
from edgellm.graph.tuning import Tuning
from edgellm.graph.weights import Kind
from edgellm.kernels.store import KernelStore, Progress
from edgellm.machine import available_memory, beyond_caches, default_threads, usable_threads
from edgellm.quants.tiles import TILE_ROWS

T = TypeVar("T")

TASK = "measuring which settings are quickest"  # what progress calls it
WEIGHT_BYTES = 1 << 27  # far beyond most last level caches: what they hold of it makes all ways alike
N_COLS, N_COLS_OF_NARROW = 2048, 768
N_WEIGHTS = 1 << 22  # of a matrix
OPS_BESIDE = 8  # beside the matrices: what makes their input
TURNS = 4
CLEARLY = 0.96  # of the default's time: what less gains may be chance
# Another number of threads must gain far more: who measures on a busy machine should not be left with one thread.
CLEARLY_OTHER_THREADS = 0.75
CHUNK_BYTES = (1 << 15, 1 << 17, 1 << 21)
PREFETCH_BYTES = (1 << 12, 1 << 14, 1 << 15)
TILES_PREFETCHES = (
    (1 << 13, "first_level"),
    (7 << 12, "first_level"),
    (1 << 13, "both_levels"),
)  # bytes ahead, where to
SMALL_BATCHES = (2, 4, 6, 8)
TILES_SMALL_BATCHES = (4, 8, 16, 24)
# Tiles take room on disk: they must be clearly quicker for one token, or as quick, and far quicker for several.
# So much depends on them that there are many turns.
AS_QUICK, SEVERAL, FAR_QUICKER = 1.05, 8, 0.8
TILES_TURNS = 15
# Into which cache tiles are prefetched matters much and costs nothing else: what most turns say counts.
PREFETCH_TURNS = 9
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 0.05, 60  # how long we look whether others are busy, and how long that is true


def remembered(store: KernelStore, weights: Kind, n_threads: int | None = None) -> Tuning | None:
    """What was measured before, with the number of threads that somebody wants; None on a first start, and where the
    machine was busy when it was measured and is quiet now.
    """
    tuning = Tuning.load(_path(store, weights))
    if tuning is None:
        of_busy = Tuning.load(_path(store, weights, is_busy=True))
        tuning = of_busy if of_busy is not None and _is_busy(int(time.monotonic() / LOOK_AGAIN_SECONDS)) else None
    return tuning and _with_threads(tuning, n_threads)


def measure_and_remember(
    store: KernelStore, weights: Kind, n_threads: int | None = None, progress: Progress | None = None
) -> Tuning:
    """Measure, in some three seconds and twice that beside large caches, and keep the settings beside the kernels.

    weights:  what most of a model's weights are. progress(done, total, what) is called while kernels are
              compiled, with their names, and with (0, 0, TASK) before each of the measurements.
    """
    from edgellm.machine.others import OtherWork, is_too_busy  # which other starts do without

    private.prepare(store.folder)
    others = OtherWork()
    tuning = measure(store, weights, progress)
    tuning.save(_path(store, weights, is_busy=is_too_busy(others.cores(), tuning.n_threads)))
    return _with_threads(tuning, n_threads)


@lru_cache(maxsize=1)
def _is_busy(minute: int) -> bool:
    """Whether other programs keep this machine busy, in a minute."""
    from edgellm.machine.others import OtherWork, is_too_busy

    others = OtherWork()
    time.sleep(LOOK_SECONDS)
    return is_too_busy(others.cores(), default_threads())


def forget(store: KernelStore) -> None:
    """Measure again at the next start."""
    for path in store.folder.glob("tuning.*.json"):
        path.unlink(missing_ok=True)


def _path(store: KernelStore, weights: Kind, is_busy: bool = False) -> Path:
    """What was measured in a container, or pinned to few cores, says nothing of the whole machine."""
    return store.folder / f"tuning.{weights}.{usable_threads()}{'.busy' if is_busy else ''}.json"


def _with_threads(tuning: Tuning, n_threads: int | None) -> Tuning:
    return tuning if n_threads is None else replace(tuning, n_threads=n_threads)


def measure(store: KernelStore, weights: Kind, progress: Progress | None = None) -> Tuning:
    """Find the settings, one after the other, each with those found before."""
    work = _Work(store, weights, min(WEIGHT_BYTES, available_memory() // 4), progress)
    tuning = Tuning(default_threads())
    tuning = work.best(
        tuning, [replace(tuning, n_threads=n) for n in _thread_counts(tuning.n_threads)], CLEARLY_OTHER_THREADS
    )
    tuning = work.best(tuning, [replace(tuning, chunk_bytes=n) for n in CHUNK_BYTES])
    tuning = work.best(tuning, [replace(tuning, prefetch_bytes=n) for n in PREFETCH_BYTES])
    tuning = replace(tuning, small_batch=work.small_batch(tuning))
    if not weights.format.in_tiles:
        return tuning
    from_memory = _Work(store, weights, beyond_caches(WEIGHT_BYTES), progress)
    tuning = from_memory.prefetching_tiles(tuning)
    if from_memory.tiles_pay(tuning):
        return replace(tuning, tiles=True, tiles_small_batch=work.small_batch(replace(tuning, tiles=True)))
    return tuning


def _thread_counts(default: int) -> list[int]:
    """Other numbers of threads worth a try: one for every logical core, one core left to others, half of them."""
    return sorted({usable_threads(), max(1, default - 1), max(1, default // 2)} - {default})


class _Work:
    """Programs of linear layers, and how long they take."""

    def __init__(self, store: KernelStore, weights: Kind, n_bytes: int, progress: Progress | None = None) -> None:
        self.store, self.weights, self.progress = store, weights, progress
        store.load(KERNELS, progress)
        n_cols, fmt = N_COLS_OF_NARROW if weights.is_narrow else N_COLS, weights.format
        self.n_cols = -(-n_cols // fmt.block_size) * fmt.block_size
        self.n_rows = N_WEIGHTS // self.n_cols // TILE_ROWS * TILE_ROWS
        row_bytes = fmt.row_bytes(self.n_cols)
        self.memory = aligned(max(1, n_bytes // (self.n_rows * row_bytes)) * self.n_rows * row_bytes)
        self.memory.fill(0x3C)  # of float16 scales a number near 1; of zeros, all pages would be the same one
        self.matrices = [
            Tensor(f"matrix {i}", (self.n_rows, self.n_cols), fmt, raw)
            for i, raw in enumerate(self.memory.reshape(-1, self.n_rows, row_bytes))
        ]

    @contextmanager
    def programs(self, *tunings: Tuning) -> Iterator[list[_Runnable]]:
        """All matrices by one input, with each of these settings.

        Those with as many threads have one team: threads that wait for work, and others that are woken on the core of
        one that works, would decide which of two is quicker.
        """
        teams: dict[int, Team] = {}
        max_ops = len(self.matrices) + OPS_BESIDE
        try:
            for n in {tuning.n_threads for tuning in tunings}:
                teams[n] = Team(self.store, n, max_ops)
            programs = [_Runnable(self, tuning, teams[tuning.n_threads]) for tuning in tunings]
            if self.progress is not None:
                self.progress(0, 0, TASK)
            yield programs
        finally:
            for team in teams.values():
                team.close()

    def best(
        self,
        default: Tuning,
        others: Sequence[Tuning],
        clearly: float = CLEARLY,
        n_turns: int = TURNS,
        typical: Callable[[list[float]], float] = max,
    ) -> Tuning:
        """The quickest for one token, or the default when none is clearly quicker.

        typical:  what counts of a setting's times over the default's of the same turn; by default its worst.
        """
        if not others:
            return default
        with self.programs(default, *others) as programs:
            turns = _take_turns({program.tuning: program.run for program in programs}, n_turns)
        shares = {tuning: typical([turn[tuning] / turn[default] for turn in turns]) for tuning in others}
        best = min(others, key=lambda tuning: shares[tuning])
        return best if shares[best] < clearly else default

    def small_batch(self, tuning: Tuning) -> int:
        """Up to how many tokens the kernel for small batches is quicker than the one for large ones."""
        candidates = TILES_SMALL_BATCHES if tuning.tiles else sorted({*SMALL_BATCHES, tuning.small_batch})
        ways = (replace(tuning, small_batch=n, tiles_small_batch=n) for n in (max(candidates), 1))
        found = 1
        with self.programs(*ways) as (small, large):
            for n_tokens in candidates:
                turns = _take_turns({program: partial(program.run, n_tokens) for program in (small, large)})
                if min(turn[small] for turn in turns) > min(turn[large] for turn in turns):
                    break
                found = n_tokens
        return found

    def prefetching_tiles(self, tuning: Tuning) -> Tuning:
        """The same, with how far ahead tiles should be prefetched, and into which cache."""
        tiles = replace(tuning, tiles=True)
        others = [replace(tiles, tiles_prefetch_bytes=n, tiles_prefetch=what) for n, what in TILES_PREFETCHES]
        found = self.best(tiles, others, n_turns=PREFETCH_TURNS, typical=_median)
        return replace(found, tiles=tuning.tiles)

    def tiles_pay(self, tuning: Tuning) -> bool:
        """Whether weights should lie as tiles."""
        share = {}  # of the file's time, in most turns
        with self.programs(*(replace(tuning, tiles=tiles) for tiles in (False, True))) as (file, tiles):
            for n_tokens in (1, SEVERAL):
                turns = _take_turns({program: partial(program.run, n_tokens) for program in (file, tiles)}, TILES_TURNS)
                share[n_tokens] = _median([turn[tiles] / turn[file] for turn in turns])
        return share[1] < CLEARLY or (share[1] < AS_QUICK and share[SEVERAL] < FAR_QUICKER)


@dataclass(eq=False)
class _Runnable:
    """All matrices by one input, as a program with these settings."""

    work: _Work
    tuning: Tuning
    team: Team

    def __post_init__(self) -> None:
        graph = Graph()
        x = graph.input(self.work.n_cols)
        is_sensitive = self.work.weights.n_planes == 2
        products = [graph.output(linear(x, matrix, sensitive=is_sensitive)) for matrix in self.work.matrices]
        # Whatever the bytes mean, as tiles they are read as quickly.
        matrices = self.work.matrices if self.tuning.tiles else []
        tiles = {matrix: matrix.raw.reshape(self.work.n_rows // TILE_ROWS, -1) for matrix in matrices}
        lowered = lower(graph, Target(self.work.store.isa, self.tuning, tiles=tiles))
        self.work.store.load(lowered.kernels, self.work.progress)
        self._input = np.ones((2 * TOKEN_ALIGN, Rows(x.width).stride), np.float32)
        self._products = np.empty((2 * TOKEN_ALIGN, Rows(self.work.n_rows).stride), np.float32)
        # Nobody looks at the products: all are written to the same place, as in a model, whose layers use memory again.
        places = {x: self._input.ctypes.data, **dict.fromkeys(products, self._products.ctypes.data)}
        batch = Batch(max(TILES_SMALL_BATCHES), lowered)
        self._program = Program(lowered, self.work.store, batch, self.team, inputs=places)

    def run(self, n_tokens: int = 1) -> None:
        self._program.run({"tokens": n_tokens})


def _take_turns(candidates: dict[T, Callable[[], None]], n_turns: int = TURNS) -> list[dict[T, float]]:
    """Seconds that each takes in every turn; the turn before the first warms up."""
    turns = []
    for _ in range(n_turns + 1):
        seconds = {}
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - started
        turns.append(seconds)
    return turns[1:]


def _median(shares: list[float]) -> float:
    from statistics import median  # which starts that measure nothing do without

    return median(shares)
