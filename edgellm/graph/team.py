"""The team of threads that runs programs: the caller, and helpers that sleep while there is nothing to do.

A team survives a fork: in the child its helpers start anew when it first runs.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from edgellm.graph.forks import at_fork
from edgellm.kernels import records
from edgellm.kernels.registry import Kernel, find
from edgellm.kernels.schema import LINE, WORD_BYTES
from edgellm.kernels.store import KernelStore

LINE_WORDS = LINE // WORD_BYTES
SLICE_SECONDS = 0.03  # of a long run, between two looks at what else has happened
KERNELS: tuple[Kernel, Kernel] = (find("lead"), find("work"))


class Runnable(Protocol):
    """What a team runs."""

    record: np.ndarray  # a records.PROGRAM


class Team:
    """`n_threads` threads, the caller of `run` among them. One run at a time: the owner holds a lock."""

    def __init__(self, store: KernelStore, n_threads: int, max_ops: int) -> None:
        self.n_threads = n_threads
        self.max_ops = max_ops
        self._store = store  # its machine code runs until the threads end
        lead, work = KERNELS
        self._lead, self._work = store.function(lead), store.function(work)
        self._n_chunks = np.zeros((n_threads + 1, max_ops), np.int64)
        self._seats = np.zeros((n_threads, LINE_WORDS), np.int64)
        self._record = records.TEAM.new()
        self._record["all_n_chunks"] = self._n_chunks.ctypes.data
        self._record["max_ops"] = max_ops
        self._record["seats"] = self._seats.ctypes.data
        self._record["n_threads"] = n_threads
        self._record["yield_core"] = _yield_function()
        self._address = self._record.ctypes.data
        # Words that every run writes: by views, for a field of a record is looked up slowly.
        self._slice_word, self._following = self._record["slice_ops"], self._record["following"]
        self._slice_ops = 1
        # A thread that comes late to a run still looks at the program when that run is over: all stay to the end.
        self._programs: dict[Runnable, int] = {}  # where the record of each is
        self._done_with: set[Runnable] = set()
        self._stopping = False
        self._gather()
        at_fork(self, in_child=Team._gather)
        self._wake()

    def run(self, program: Runnable, then: Runnable | None = None) -> None:
        """Run a program, and another one behind it; returns when all of their ops are done. The GIL is free meanwhile.

        After a pass over the weights, little of Python is in the caches: to come back to it between two programs takes
        longer than their first ops.
        """
        known = self._programs
        address = known.get(program) or self._address_of(program)
        self._following[0] = 0 if then is None else known.get(then) or self._address_of(then)
        self._slice_word[0] = self.max_ops
        try:
            self._is_running = True
            self._wake()
            self._lead(self._address, address, 0)
        finally:
            self._is_running = False

    def forget(self, programs: Iterable[Runnable]) -> None:
        """Release programs that will not be run any more, as soon as no thread can be at work in them."""
        self._done_with.update(self._programs.keys() & set(programs))
        current, n_chunks = int(self._record["program"][0]), self._record["n_chunks"][0]
        # Who is late names what its run has, which is the current one, or an older one.
        if np.isin(self._seats[1:, 0], (0, n_chunks)).all():
            gone = {program for program in self._done_with if program.record.ctypes.data != current}
            self._programs = {program: at for program, at in self._programs.items() if program not in gone}
            self._done_with -= gone

    def _address_of(self, program: Runnable) -> int:
        """Where its record is, which must live as long as the threads do."""
        address = self._programs.get(program)
        if address is None:
            address = self._programs[program] = program.record.ctypes.data
        return address

    def run_in_slices(self, program: Runnable, stop: Callable[[], bool] | None = None) -> bool:
        """Run a program that takes long, and come back to Python every SLICE_SECONDS, for Ctrl-C and for `stop()`.

        stop:  whether the results are no longer wanted. The run then ends at once, and this returns False.
        """
        address, n_ops, at = self._address_of(program), int(program.record["n_ops"][0]), 0
        self._following[0] = 0
        try:
            self._is_running = True
            self._wake()
            while at < n_ops:
                if at and stop is not None and stop():
                    self._abort(program, at)
                    return False
                n = self._slice_word[0] = self._slice_ops
                started = time.perf_counter()
                self._lead(self._address, address, at)
                at += n
                self._adapt(time.perf_counter() - started)
        except BaseException:  # Ctrl-C between two slices, while the other threads are at work
            self._abort(program, at)
            raise
        finally:
            self._is_running = False
        return True

    def _abort(self, program: Runnable, at: int) -> None:
        """Go through what is left of a run without doing it."""
        program.record["abort"] = 1
        self._slice_word[0] = self.max_ops
        self._lead(self._address, self._address_of(program), at)
        program.record["abort"] = 0

    def _adapt(self, seconds: float) -> None:
        """Make slices as long as they should be; ops of one program take about as long as those of the next."""
        if seconds > SLICE_SECONDS:
            self._slice_ops = max(1, self._slice_ops // 2)
        elif seconds < SLICE_SECONDS / 4:
            self._slice_ops = min(self.max_ops, 2 * self._slice_ops)

    def close(self) -> None:
        """End the helper threads. A run that is on goes on without them."""
        self._stopping = True
        self._record["stop"] = 1
        for alarm in self._alarms:  # whoever sleeps: an exception may have interrupted `_wake`
            alarm.release()
        for helper in self._helpers:
            if helper and helper.is_alive():
                helper.join()
        self._programs.clear()
        self._done_with.clear()

    def _gather(self) -> None:
        """Helpers that are not there yet, and no run that they could be late for."""
        self._record[["generation", "program", "n_chunks"]] = 0
        self._is_running = False  # True from before sleeping helpers are woken until the run is over
        self._seats.fill(0)
        # Zeros that the system makes as they are touched: most programs have far fewer ops than there may be.
        self._shares = np.zeros((self.max_ops * self.n_threads, LINE_WORDS), np.int64)
        self._record["shares"] = self._shares.ctypes.data
        self._asleep = [True] * self.n_threads
        self._alarms = [threading.Semaphore(0) for _ in range(self.n_threads)]
        self._helpers: list[threading.Thread | None] = [None] * self.n_threads

    def _wake(self) -> None:
        for thread in range(1, self.n_threads):
            if self._asleep[thread]:
                self._asleep[thread] = False
                if self._helpers[thread]:
                    self._alarms[thread].release()
                elif not self._stopping:
                    self._start(thread)

    def _start(self, thread: int) -> None:
        helper = threading.Thread(target=self._help, args=(thread,), daemon=True, name=f"edgellm-{thread}")
        self._helpers[thread] = helper  # before it starts: an exception in between must not lead to two of them
        helper.start()

    def _help(self, thread: int) -> None:
        while not self._stopping:
            self._work(self._address, thread, 0)
            self._asleep[thread] = True
            # While this thread waited for the GIL, to say that it sleeps, a run may have begun: it takes part in that.
            if self._is_running:
                self._asleep[thread] = False
            elif not self._stopping:
                self._alarms[thread].acquire()


def _yield_function() -> int:
    """The address of the system call that lets other threads have this core."""
    if sys.platform == "win32":
        function = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
