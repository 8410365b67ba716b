"""Whose turn it is: so many answers are written at a time, and clients that wait come in turn, one after the other."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from edgellm.server.problems import ApiProblem

SECONDS_AT_FIRST = 2.0  # that an answer takes, before any has been seen
LONGEST_WAIT = 120  # seconds that a client is told to stay away, at most


class Turns:
    """For one event loop.

    n_parallel:  answers at the same time. n_queue: requests that may wait.
    """

    def __init__(self, n_parallel: int, n_queue: int) -> None:
        self.n_parallel = n_parallel
        self.n_queue = n_queue
        self.n_running = 0
        self.n_waiting = 0
        # Clients in the order of their turns, and what each of them waits for.
        self._waiting: OrderedDict[str, deque[tuple[asyncio.Future[None], int]]] = OrderedDict()
        self._seconds = SECONDS_AT_FIRST  # of an answer, on average

    @asynccontextmanager
    async def turn(self, client: str, n: int = 1) -> AsyncIterator[None]:
        """Wait until n answers may be written for a client. Raises ApiProblem when too many wait already."""
        if n > self.n_parallel:
            raise ApiProblem(
                400, f"{n} answers were asked for together; this server writes {self.n_parallel} at a time", "n"
            )
        if self.n_waiting or self.n_running + n > self.n_parallel:
            await self._wait(client, n)
        else:
            self.n_running += n
        started = monotonic()
        try:
            yield
        finally:
            self._seconds += 0.2 * (monotonic() - started - self._seconds)
            self.n_running -= n
            self._grant()

    async def _wait(self, client: str, n: int) -> None:
        if self.n_waiting >= self.n_queue:
            seconds = math.ceil(self._seconds * (self.n_waiting + 1) / self.n_parallel)
            raise ApiProblem(
                429,
                f"{self.n_waiting} requests wait for their turn already; come back later",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(min(max(seconds, 1), LONGEST_WAIT))},
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = (future, n)
        self._waiting.setdefault(client, deque()).append(mine)
        self.n_waiting += 1
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # the turn had come
                self.n_running -= n
            else:
                self._forget(client, mine)
            self._grant()
            raise

    def _forget(self, client: str, mine: tuple[asyncio.Future[None], int]) -> None:
        waiting = self._waiting.get(client)
        if waiting is None or mine not in waiting:
            return
        waiting.remove(mine)
        self.n_waiting -= 1
        if not waiting:
            del self._waiting[client]

    def _grant(self) -> None:
        """Let those begin whose turn has come: the next of each client, one client after the other."""
        while self._waiting:
            client, waiting = next(iter(self._waiting.items()))
            future, n = waiting[0]
            if future.cancelled():  # who waited has left, and hears of it only now
                self._forget(client, waiting[0])
                continue
            if self.n_running + n > self.n_parallel:
                return
            self._forget(client, waiting[0])
            if client in self._waiting:
                self._waiting.move_to_end(client)
            self.n_running += n
            future.set_result(None)
