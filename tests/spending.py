"""Limits to the time that a piece of work takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], clock: Callable[[], float] = time.process_time) -> T:
    """What `work` returns, done in less CPU time than `seconds` in one of three tries.

    clock:  another measure of time, as time.monotonic for the work of another process.

    A limit is there for what always takes long. A single try may meet a collection
    of garbage or threads that other tests of the process left behind.
    """
    results: list[T] = []

    def spent() -> float:
        started = clock()
        results.append(work())
        return clock() - started

    once_within(seconds, spent)
    return results[-1]


def once_within(seconds: float, measured: Callable[[], float]) -> None:
    """See that one of three tries takes less than `seconds`, where `measured` tells what a try took."""
    spent: list[float] = []
    while len(spent) < 3:
        spent.append(measured())
        if spent[-1] < seconds:
            return
    raise AssertionError(f"took {', '.join(f'{each:.2f}' for each in spent)} seconds, not less than {seconds:g}")
