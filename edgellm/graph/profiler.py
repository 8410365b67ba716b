"""How long each op of a program takes, measured while the program runs."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgellm.graph.ops import Op
from edgellm.graph.program import Program
from edgellm.graph.team import Runnable, Team
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel, find
from edgellm.kernels.store import KernelStore

CLOCK = find("clock")


@dataclass(frozen=True)
class Timed:
    """An op that was run: by which of its kernels, for how many tokens, and how long it took."""

    op: Op
    kernel: Kernel
    n_tokens: int
    seconds: float


class Profiler(Team):
    """A team that looks at the clock before the first op of a program and after each.

    Set it as a program's `team` for a while: every run then adds its ops to `timed`. The program itself stays as
    it is, so runs by another team cost nothing more than before.

    What the looking adds: an op waits until all before it are done, where a plain run lets independent ops
    overlap; and then until one thread has read the clock and the others have noticed. That is a microsecond or
    less, and counts as the op's own.
    """

    def __init__(self, store: KernelStore, n_threads: int, max_ops: int) -> None:
        store.load([CLOCK])
        super().__init__(store, n_threads, 2 * max_ops + 1)
        self.timed: list[Timed] = []
        self._clock = _Clock()
        self._watched: dict[Program, _Watched] = {}

    def run_in_slices(self, program: Runnable, stop: Callable[[], bool] | None = None) -> bool:
        self.run(program)
        return True

    def run(self, program: Runnable, then: Runnable | None = None) -> None:
        for one in (program,) if then is None else (program, then):
            assert isinstance(one, Program)
            self._run_watched(one)

    def _run_watched(self, program: Program) -> None:
        if program not in self._watched:
            self._watched[program] = _Watched(program, self._clock, self._store.address(CLOCK))
        watched = self._watched[program]
        watched.ops["kernel"][1::2] = program.ops["kernel"]
        watched.n_chunks[1::2] = program.n_chunks
        super().run(watched)

        n_tokens = int(program.batch.record["n_tokens"][0])
        seconds = self._clock.between(watched.times)
        for op, address, n_chunks, elapsed in zip(
            program.steps, program.ops["kernel"], program.n_chunks, seconds, strict=True
        ):
            if n_chunks:  # else it was left out
                is_small = op.small_kernel and self._store.address(op.small_kernel) == address
                kernel = op.small_kernel if op.small_kernel and is_small else op.kernel
                self.timed.append(Timed(op, kernel, n_tokens, elapsed))


class _Watched:
    """A program's ops in their order, with a look at the clock around each: look, op, look, op, ..., look."""

    def __init__(self, program: Program, clock: _Clock, kernel: int) -> None:
        n = len(program.ops)
        self.times = np.zeros((n + 1, 2), np.int64)
        self.looks = clock.looks(self.times)
        self.n_chunks = np.ones(2 * n + 1, np.int64)
        self.ops = records.OP.new(2 * n + 1)
        self.ops["depends"] = np.arange(2 * n + 1)
        self.ops["kernel"][::2] = kernel
        self.ops["record"][::2] = self.looks.ctypes.data + np.arange(n + 1) * self.looks.itemsize
        self.ops["record"][1::2] = program.ops["record"]
        self.record = records.PROGRAM.new()
        self.record["ops"], self.record["n_ops"] = self.ops.ctypes.data, len(self.ops)
        self.record["n_chunks"] = self.n_chunks.ctypes.data


class _Clock:
    """The system's finest clock, as a function that compiled code can call with two words."""

    def __init__(self) -> None:
        if sys.platform == "win32":
            system = ctypes.WinDLL("kernel32")
            frequency = ctypes.c_int64()
            system.QueryPerformanceFrequency(ctypes.byref(frequency))
            function = system.QueryPerformanceCounter  # (where the ticks go); the second word is ignored
            self._units = np.array([1 / frequency.value, 0])
        else:
            function = ctypes.CDLL(None).clock_gettime  # (which clock, where seconds and nanoseconds go)
            self._units = np.array([1, 1e-9])
        self._function = ctypes.cast(function, ctypes.c_void_p).value

    def looks(self, times: np.ndarray) -> np.ndarray:
        """A record for each row of `times`, int64 [n, 2]: a look that writes the time there."""
        looks = records.CLOCK.new(len(times))
        places = times.ctypes.data + np.arange(len(times)) * times.strides[0]
        looks["function"] = self._function
        if sys.platform == "win32":
            looks["first"] = places
        else:
            looks["first"], looks["second"] = time.CLOCK_MONOTONIC_RAW, places
        return looks

    def between(self, times: np.ndarray) -> list[float]:
        """Seconds from each look to the next."""
        return (np.diff(times, axis=0) @ self._units).tolist()
