"""One thread for all answers of a model: it runs the scheduler's steps and hands out what each of them gave.

Who asks is in the thread of the event loop. Between the two goes one message for each step, whatever number of answers
it was about, so that many clients cost little more than one; and none for text that can go to its client without the
loop (see `wire`), or that nobody reads before the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from edgellm.engine import Generation
from edgellm.engine.piece import Piece
from edgellm.engine.sampling import TokenLogprobs
from edgellm.server.problems import ApiProblem
from edgellm.server.wire import Wire

# Text goes out no more often than people can see: to send some costs 0.1 ms of a core, most of it in the system and at
# the client, and small models need little more than 2 ms for a token.
SECONDS_BETWEEN = 0.005


@dataclass
class Part:
    """What came of an answer since the part before.

    index:     of the answer, where there are several.
    pieces:    of its text. logprobs: of its new tokens, if they were asked for.
    has_calls: there is more of its calls (`open_calls` of the generation).
    progress:  tokens of the prompt that are computed, while nothing else can be told.
    is_last:   nothing more comes. error: why, where it is one.
    """

    index: int = 0
    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    has_calls: bool = False
    progress: int | None = None
    is_last: bool = False
    error: Exception | None = None

    @property
    def is_text(self) -> bool:
        """It is some text and nothing else."""
        return bool(self.pieces) and not (self.logprobs or self.has_calls or self.is_last)


class Answer:
    """One of the answers to a request, as the driver knows it."""

    def __init__(self, generation: Generation, index: int, of: Answers) -> None:
        self.generation = generation
        self.index = index
        self.of = of
        self.n_told = 0  # of its log-probabilities
        self.n_called = 0  # calls that have begun, and characters of them
        self.n_done = -1  # tokens of the prompt, as was told
        self.told_at = 0.0
        self._held: list[Piece] = []  # that nobody was told yet

    def to_tell(self) -> Part | None:
        """What the event loop has to be told now. Only in the driver's thread."""
        part = self._next_part()
        try:
            return None if part is None or self.of.takes(part) else part
        except Exception as error:
            self.generation.close()
            return self.failed(error)

    def failed(self, error: Exception) -> Part:
        """The end of it. Only in the driver's thread."""
        return Part(self.index, self._held, is_last=True, error=error)

    def _next_part(self) -> Part | None:
        generation = self.generation
        try:
            self._held += generation.take()
        except Exception as error:
            return self.failed(error)
        is_last = generation.finish_reason is not None
        n_called = sum(1 + len(call.arguments) for call in generation.open_calls)
        has_calls = n_called > self.n_called
        if self._held or len(generation.logprobs) > self.n_told or has_calls or is_last:
            now = monotonic()
            if now < self.told_at + SECONDS_BETWEEN and not is_last:
                return None
            self.told_at = now
            pieces, self._held = self._held, []
            logprobs = generation.logprobs[self.n_told :]
            self.n_told += len(logprobs)
            self.n_called = n_called
            return Part(self.index, pieces, logprobs, has_calls, is_last=is_last)
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
    wire:         the connection that they go out on.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        driver: Driver,
        tells_progress: bool = False,
        wire: Wire | None = None,
    ) -> None:
        self.generations = generations
        self.tells_progress = tells_progress
        self.first_at: float | None = None
        self.loop = asyncio.get_running_loop()
        self.each = [Answer(generation, index, self) for index, generation in enumerate(generations)]
        self._parts: deque[Part] = deque()
        self._arrival: asyncio.Future[None] | None = None  # of the next one, when all have been taken
        self._n_left = len(self.each)
        self._driver: Driver | None = driver  # who has not begun yet
        self._wire = wire
        self._say: Callable[[Part], bytes] | None = None
        self._is_quiet = False
        self._n_told = 0  # parts, of which the event loop was told; in the driver's thread
        self._n_taken = 0

    # --- in the driver's thread ---------------------------------------------------------------------------

    def takes(self, part: Part) -> bool:
        """Whether a part needs nobody else; if not, the event loop has to be told. Raises what `say` does."""
        if (part.pieces or part.has_calls) and self.first_at is None:
            self.first_at = monotonic()
        if self._is_quiet and not part.is_last:
            return True
        wire, say = self._wire, self._say
        if wire is not None and say is not None and part.is_text and wire.send(self._n_told, lambda: say(part)):
            return True
        self._n_told += 1
        return False

    # --- in the event loop --------------------------------------------------------------------------------

    def said_as(self, say: Callable[[Part], bytes]) -> Answers:
        """These, whose iterator leaves out text that went straight to the client, as what `say` makes of it.

        It is called in either thread, never in both, and with every part once: by who iterates with those it gets.
        """
        self._say = say
        return self

    async def finish(self) -> None:
        """Wait for the end, and hear of nothing before. Raises what went wrong with one."""
        self._is_quiet = True
        async for _ in self:
            pass

    def put(self, part: Part) -> None:
        self._parts.append(part)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with an error."""
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
            if self._say is not None and self._wire is not None:
                self.loop.call_soon(self._offer, self._wire)  # what was sent leaves the transport meanwhile
            await self._arrival
        part = self._parts.popleft()
        if part.error is not None and part.pieces:
            self._parts.appendleft(replace(part, pieces=[]))
            return Part(part.index, part.pieces)
        self._n_taken += 1
        self._n_left -= part.is_last
        if part.error is not None:
            self._n_left = 0
            raise part.error
        return part

    def _offer(self, wire: Wire) -> None:
        """Let text go straight to the client, unless more has come that is to be sent here."""
        if self._arrival is not None and not self._arrival.done():
            wire.offer(self._n_taken)

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
                told = [(answer, part) for answer in going if (part := answer.to_tell()) is not None]
            except Exception as error:  # of no single answer
                told = [(answer, answer.failed(error)) for answer in going]
            _tell(told)
            ended = {id(answer) for answer, part in told if part.is_last}
            if ended:
                going = [answer for answer in going if id(answer) not in ended]
            told.clear()
        for answer in going:
            answer.generation.close()
        _tell([(answer, answer.failed(_unloaded())) for answer in going])


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
