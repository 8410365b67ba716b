"""The team of threads: no run is lost, torn or stuck, whoever is late, and nobody works when there is no work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.graph import Graph, Team
from edgellm.graph.nodes import select_rows
from edgellm.kernels.ops.run import RENEWAL, RUNS
from edgellm.kernels.store import KernelStore
from tests.spending import within

from .conftest import MAX_OPS, lowered, program_of, rows_for

CAPACITY = 16
N_STEPS = 20


class Shuffle:
    """A program that permutes rows again and again: each step needs all rows of the one before it."""

    def __init__(self, store: KernelStore, team: Team, n_steps: int = N_STEPS, width: int = 16) -> None:
        graph = Graph()
        source = value = graph.input(width)
        for _ in range(n_steps):
            value = select_rows(value)
        self.result = graph.output(value)
        self.rows = rows_for(source, CAPACITY)
        self.program = program_of(lowered(graph, team.n_threads), store, team, CAPACITY, {source: self.rows})
        self.n_steps = n_steps

    def run(self, rng: np.random.Generator) -> None:
        """Some tokens, some permutation: the result must be what NumPy says."""
        self.program.run(self.prepare(rng))
        self.check()

    def prepare(self, rng: np.random.Generator) -> dict[str, int]:
        n = int(rng.integers(1, CAPACITY + 1))
        self.order = rng.permutation(n)
        self.rows[:n] = rng.random((n, 1), np.float32)
        return self.program.batch.select(self.order)

    def check(self) -> None:
        want = self.rows[: len(self.order)]
        for _ in range(self.n_steps):
            want = want[self.order]
        np.testing.assert_array_equal(self.program.view(self.result, len(want)), want)


@pytest.mark.parametrize("n_threads", [1, 2, 4, 7])
def test_thousands_of_tiny_runs(store: KernelStore, team_of: Callable[[int], Team], n_threads: int) -> None:
    """Two programs in turn, with more threads than most machines have cores: some are always late."""
    team, rng = team_of(n_threads), np.random.default_rng(n_threads)
    long, short = Shuffle(store, team), Shuffle(store, team, 1)
    for _ in range(3000):
        for program in (long, short):
            program.run(rng)


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_two_programs_in_one_call(store: KernelStore, team_of: Callable[[int], Team], n_threads: int) -> None:
    """One is run behind the other; and only in that call."""
    team, rng = team_of(n_threads), np.random.default_rng(n_threads)
    first, second = Shuffle(store, team), Shuffle(store, team, 2)
    for _ in range(500):
        for shuffle in (first, second):
            shuffle.program.prepare(shuffle.prepare(rng))
        team.run(first.program, then=second.program)
        first.check()
        second.check()
        second.program.view(second.result, CAPACITY)[...] = -1
        first.run(rng)
        assert (second.program.view(second.result, CAPACITY) == -1).all()


def test_runs_with_pauses(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """As long as it takes helpers to fall asleep, more or less: runs meet them at every stage of it."""
    team, rng = team_of(4), np.random.default_rng(1)
    program = Shuffle(store, team)
    for _ in range(300):
        time.sleep(float(rng.random()) * 0.006)
        program.run(rng)


def test_a_thread_that_is_late_does_no_harm(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Helpers that must wait for a slow chunk go away for a while, in the middle of a run; the leader goes on."""
    naps = iter(np.random.default_rng(3).random(100_000).tolist())
    leader = threading.current_thread()

    @ctypes.CFUNCTYPE(ctypes.c_int)
    def nap() -> int:
        if threading.current_thread() is not leader:
            time.sleep(0.003 * next(naps))
        return 0

    team, rng = team_of(3), np.random.default_rng(4)
    team._record["yield_core"] = ctypes.cast(nap, ctypes.c_void_p).value
    slow, quick = Shuffle(store, team, 3, width=1 << 14), Shuffle(store, team)
    for _ in range(400):
        slow.run(rng)
        for _ in range(int(rng.integers(1, 5))):
            quick.run(rng)
    team.close()  # before `nap` is gone


def test_runs_are_told_apart_for_ever(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Their numbers begin anew after millions of runs, and some ops may have rested all the while."""
    team, rng = team_of(3), np.random.default_rng(5)
    long, short = Shuffle(store, team), Shuffle(store, team, 1)
    long.run(rng)
    for n_runs in range(RENEWAL, 2 * RUNS + RENEWAL, RENEWAL):
        wait_until_asleep(team)
        team._record["generation"] = 2 * (n_runs - 2)  # as if there had been so many
        team._seats[:, 1] = 2 * (n_runs - 2)
        for _ in range(4):
            short.run(rng)
        if n_runs % (RUNS // 2) == 0:
            long.run(rng)


def wait_until_asleep(team: Team) -> None:
    deadline = time.monotonic() + 5
    while not all(team._asleep[1:]) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_nobody_works_when_there_is_no_work(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    team = team_of(3)
    program = Shuffle(store, team)
    program.run(np.random.default_rng(0))
    wait_until_asleep(team)
    within(0.02, lambda: time.sleep(0.5))
    program.run(np.random.default_rng(0))  # and they come back


@pytest.mark.skipif(sys.platform == "win32", reason="another C library")
def test_who_gives_up_while_python_is_busy_takes_part_in_the_next_run(
    store: KernelStore, team_of: Callable[[int], Team]
) -> None:
    """A helper with nothing to do goes to sleep, but for that it needs the GIL, and gets it when the run begins."""
    team, rng = team_of(2), np.random.default_rng(6)
    team._record["yield_core"] = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value  # and yields nothing
    shuffle = Shuffle(store, team, 60, width=1 << 16)  # some 30 ms: long enough to wake up in
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        for _ in range(5):
            shuffle.run(rng)
            step = shuffle.prepare(rng)
            until = time.perf_counter() + 0.1
            while time.perf_counter() < until:
                pass
            shuffle.program.run(step)
            shuffle.check()
            wait_until_asleep(team)
            assert team._seats[1, 1] == team._record["generation"][0]  # the last run that it has seen
    finally:
        sys.setswitchinterval(interval)


def test_close_ends_the_threads_asleep_or_awake(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    before = {*threading.enumerate()}
    for pause in (0, 0.001, 0.05):
        team = team_of(4)
        assert len({*threading.enumerate()} - before) == 3
        Shuffle(store, team).run(np.random.default_rng(0))
        time.sleep(pause)
        team.close()
        assert {*threading.enumerate()} <= before


def test_a_closed_team_can_be_closed_again_and_still_run(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    team = team_of(3)
    program = Shuffle(store, team)
    team.close()
    team.close()
    program.run(np.random.default_rng(0))


def test_a_program_stays_until_no_thread_can_look_at_it(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Who comes late to a run finds it over, but only by looking at its program."""
    team = team_of(2)
    programs = [weakref.ref(Shuffle(store, team).program) for _ in range(3)]
    kept = Shuffle(store, team)
    kept.run(np.random.default_rng(0))
    ran = weakref.ref(kept.program)
    del kept
    gc.collect()
    assert ran() is not None
    assert not any(program() for program in programs)  # these never ran
    team.close()
    gc.collect()
    assert ran() is None


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timer")
def test_an_exception_at_any_moment_leaves_the_team_whole(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Ctrl-C comes when it will: here every few milliseconds."""

    class Interrupt(Exception):
        pass

    def interrupt(*_) -> None:
        raise Interrupt

    team, rng = team_of(3), np.random.default_rng(2)
    program = Shuffle(store, team)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(150):
            with contextlib.suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + float(rng.random()) * 0.004)
                while True:
                    program.program.run({"tokens": 5})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for _ in range(20):
        program.run(rng)


def test_a_program_with_too_many_ops_is_refused(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    team = team_of(1)
    Shuffle(store, team, MAX_OPS)
    with pytest.raises(UsageError, match=f"{MAX_OPS + 1} ops for a team that can run {MAX_OPS}"):
        Shuffle(store, team, MAX_OPS + 1)
