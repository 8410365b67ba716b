"""One thread for all answers of a model: it runs the scheduler's steps and hands out what each of them gave.

Who asks is in the thread of the event loop. Between the two goes one message for each step, whatever number of answers
it was about, so that many clients cost little more than one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from edgellm.engine import Generation
from edgellm.engine.piece import Piece
from edgellm.engine.sampling import TokenLogprobs
from edgellm.server.problems import ApiProblem


@dataclass
class Part:
    """What came of an answer since the part before.

    index:     of the answer, where there are several.
    pieces:    of its text. logprobs: of its new tokens, if they were asked for.
    progress:  tokens of the prompt that are computed, while nothing else can be told.
    is_last:   nothing more comes. error: why, where it is one.
    """

    index: int = 0
    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    progress: int | None = None
    is_last: bool = False
    error: Exception | None = None


class Answer:
    """One of the answers to a request, as the driver knows it."""

    def __init__(self, generation: Generation, index: int, of: Answers) -> None:
        self.generation = generation
        self.index = index
        self.of = of
        self.n_told = 0  # of its log-probabilities
        self.n_done = -1  # tokens of the prompt, as was told

    def next_part(self) -> Part | None:
        """What there is to tell now. Only in the driver's thread."""
        generation = self.generation
        try:
            pieces = generation.take()
        except Exception as error:
            return Part(self.index, is_last=True, error=error)
        logprobs = generation.logprobs[self.n_told :]
        self.n_told += len(logprobs)
        is_last = generation.finish_reason is not None
        if pieces or logprobs or is_last:
            return Part(self.index, pieces, logprobs, is_last=is_last)
        if self.of.tells_progress and self.n_done != generation.n_prompt_done:
            self.n_done = generation.n_prompt_done
            return Part(self.index, progress=self.n_done)
        return None


class Answers:
    """All answers to one request, for the event loop: an async iterator over their parts, in the order of time.

    They begin when the first part is asked for. So whoever sends them has done what comes before, and does not hold up
    the driver's thread, which needs the interpreter to prepare the first step.

    generations:  may be looked at when the last part has come.
    first_at:     when the first text came, on the clock of `time.monotonic`; None before.
    """

    def __init__(self, generations: Sequence[Generation], driver: Driver, tells_progress: bool = False) -> None:
        self.generations = generations
        self.tells_progress = tells_progress
        self.first_at: float | None = None
        self.loop = asyncio.get_running_loop()
        self.each = [Answer(generation, index, self) for index, generation in enumerate(generations)]
        self._parts: deque[Part] = deque()
        self._arrival: asyncio.Future[None] | None = None  # of the next one, when all have been taken
        self._n_left = len(self.each)
        self._driver: Driver | None = driver  # who has not begun yet

    def put(self, part: Part) -> None:
        """Called in the event loop."""
        if part.pieces and self.first_at is None:
            self.first_at = monotonic()
        self._parts.append(part)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with an error, in the event loop."""
        self.cancel()
        self.put(Part(is_last=True, error=error))

    def __aiter__(self) -> AsyncIterator[Part]:
        return self

    async def __anext__(self) -> Part:
        """Raises what went wrong with an answer, ApiProblem when the model has been unloaded."""
        if self._n_left == 0:
            raise StopAsyncIteration
        while not self._parts:
            if self._driver is not None:
                driver, self._driver = self._driver, None
                driver.start(self)
            self._arrival = self.loop.create_future()
            await self._arrival
        part = self._parts.popleft()
        self._n_left -= part.is_last
        if part.error is not None:
            self._n_left = 0
            raise part.error
        return part

    def cancel(self) -> None:
        """Nobody wants the rest. From any thread, also when all has ended."""
        for generation in self.generations:
            generation.cancel()


class Driver:
    """The thread of one model."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._arrived: list[Answer] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"edgellm-{name}", daemon=True)
        self._thread.start()

    def start(self, answers: Answers) -> None:
        """Let answers be written. Raises ApiProblem after `close`."""
        with self._changed:
            if self._is_closing:
                raise _unloaded()
            self._arrived += answers.each
            self._changed.notify()

    def close(self) -> None:
        """End the thread; what is being written ends with an error."""
        with self._changed:
            self._is_closing = True
            for answer in self._arrived:
                answer.generation.cancel()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        going: list[Answer] = []
        while True:
            with self._changed:
                while not (self._arrived or going or self._is_closing):
                    self._changed.wait()
                going += self._arrived
                self._arrived = []
                if self._is_closing:
                    break
            try:
                Generation.advance([answer.generation for answer in going])
                told = [(answer, part) for answer in going if (part := answer.next_part()) is not None]
            except Exception as error:  # of no single answer
                told = [(answer, Part(answer.index, is_last=True, error=error)) for answer in going]
            _tell(told)
            ended = {id(answer) for answer, part in told if part.is_last}
            if ended:
                going = [answer for answer in going if id(answer) not in ended]
            told.clear()
        for answer in going:
            answer.generation.close()
        _tell([(answer, Part(is_last=True, error=_unloaded())) for answer in going])


def _unloaded() -> ApiProblem:
    return ApiProblem(503, "the model was unloaded; ask again", headers={"Retry-After": "1"})


def _tell(told: list[tuple[Answer, Part]]) -> None:
    """One message to the event loop for all; a loop that is closed needs none."""
    if told:
        try:
            told[0][0].of.loop.call_soon_threadsafe(_put, list(told))
        except RuntimeError:
            for answer, _ in told:
                answer.generation.cancel()


def _put(told: list[tuple[Answer, Part]]) -> None:
    for answer, part in told:
        answer.of.put(part)
