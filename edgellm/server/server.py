"""What all interfaces share: the models, whose turn it is, and answers from their beginning to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic, time
from typing import Any, TypeVar

from starlette.requests import Request

from edgellm._version import __version__
from edgellm.engine import Generation, Model
from edgellm.errors import EdgellmError
from edgellm.machine import available_memory
from edgellm.machine.energy import EnergyMeter
from edgellm.server.bodies import Body, parsed, read_bytes
from edgellm.server.driver import Answers
from edgellm.server.metrics import Metrics
from edgellm.server.models import Loaded, Models
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.settings import ServerConfig
from edgellm.server.turns import Turns
from edgellm.server.wire import wire_of

Result = TypeVar("Result")
LARGE = 1 << 17  # bytes of a body


class Job:
    """Answers that are being written, with all that they hold: their turn and their model.

    answers, loaded:  what is written, by which model. started: when the request came.
    """

    def __init__(
        self,
        server: Server,
        loaded: Loaded,
        answers: Answers,
        held: AsyncExitStack,
        started: float,
        record: dict[str, Any],
        called: Mapping[str, str] | None = None,
    ) -> None:
        self.server, self.loaded, self.answers, self.started = server, loaded, answers, started
        self.record, self._called = record, called
        self.created = int(time())
        self._held = held
        self._is_open = True

    @property
    def model(self) -> Model:
        return self.loaded.model

    @property
    def generations(self) -> Sequence[Generation]:
        return self.answers.generations

    async def finish(self) -> None:
        """Wait for the end of all answers. Raises what went wrong with one."""
        await self.answers.finish()

    def problem(self, error: Exception) -> ApiProblem:
        """What a client is told of an error in the middle of a stream; the log hears of it too."""
        problem = problem_of(error, self._called)
        self.record["error"] = problem.message
        if not isinstance(error, (ApiProblem, EdgellmError)):
            self.record["exception"] = f"{type(error).__name__}: {error}"[:500]
        return problem

    async def close(self) -> None:
        """Give everything back; what is still being written is cancelled."""
        if not self._is_open:
            return
        self._is_open = False
        self.answers.cancel()
        metrics = self.server.metrics
        for generation in self.generations:
            is_cancelled = generation.finish_reason in (None, "cancelled")
            metrics.count_answer(generation.stats, is_cancelled)
        stats = [generation.stats for generation in self.generations]
        self.record["prompt_tokens"] = sum(one.n_prompt_tokens for one in stats)
        self.record["generated_tokens"] = sum(one.n_generated_tokens for one in stats)
        if self.server.config.log_contents:
            self.record["answered"] = [generation.message for generation in self.generations]
        if self.answers.first_at is not None:
            metrics.first_token.add(self.answers.first_at - self.started)
        metrics.answer.add(monotonic() - self.started)
        await self._held.aclose()


class Server:
    """One for each application.

    config:  how it behaves. models: what can be asked for.
    """

    def __init__(self, config: ServerConfig, named: dict[str, Path] | None) -> None:
        self.config = config
        self.models = Models(named, config.runtime, config.memory_bytes, config.idle)
        self.turns = Turns(config.parallel, config.queue)
        self.metrics = Metrics()
        self.started = monotonic()
        self._energy = EnergyMeter()
        self._is_stopping = False
        self._waiting: set[asyncio.Task[Any]] = set()  # for their turn, or for what a thread does
        self._writing: set[Answers] = set()

    def stop(self) -> None:
        """End all answers, and what waits to become one, with an error for the client."""
        self._is_stopping = True
        for task in self._waiting:
            task.cancel()
        for answers in self._writing:
            answers.fail(_stopping())

    async def _awaited(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What some work gives. Raises ApiProblem when it takes too long or the server stops."""
        if self._is_stopping:
            work.close()
            raise _stopping()
        task = asyncio.ensure_future(work)
        self._waiting.add(task)
        try:
            return await asyncio.wait_for(task, self.config.timeout or None)
        except asyncio.TimeoutError:
            raise self._too_late() from None
        except asyncio.CancelledError:
            if self._is_stopping:
                raise _stopping() from None
            raise
        finally:
            self._waiting.discard(task)

    async def body(self, request: Request, kind: type[Body]) -> Body:
        """The body of a request. Raises ApiProblem."""
        raw = await read_bytes(request, self.config.body_bytes, self.config.body_timeout)
        # Large ones take a while, in which others go on.
        found = parsed(raw, kind) if len(raw) < LARGE else await asyncio.to_thread(parsed, raw, kind)
        if self.config.log_contents:
            request.scope["state"]["record"]["asked"] = found.model_dump(exclude_unset=True, mode="json")
        return found

    async def begin(
        self,
        request: Request,
        name: str | None,
        make: Callable[[Model], Sequence[Generation]],
        *,
        n: int = 1,
        tells_progress: bool = False,
        called: Mapping[str, str] | None = None,
        idle: float | None = None,
    ) -> Job:
        """Let answers begin when their turn has come. The job must be closed.

        make:    makes the generations, in a thread. n: how many. called: what the interface calls our parameters.
        idle:    seconds for which the model is kept afterwards, if not as long as usual.
        Raises ApiProblem.
        """
        started = monotonic()
        deadline = started + self.config.timeout if self.config.timeout else None
        held = AsyncExitStack()
        try:
            name = await self.models.find(name)
            record = request.scope["state"]["record"]
            record["model"] = name
            work = self._hold(held, request.scope["state"]["client"], name, n, make)
            loaded, generations = await self._awaited(work)
            record["queued"] = round(monotonic() - started, 4)
            if idle is not None:
                loaded.idle = idle
            answers = Answers(generations, loaded.driver, tells_progress, wire_of(request.scope))
            self._writing.add(answers)
            held.callback(self._writing.discard, answers)
            if deadline is not None:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(deadline - monotonic(), answers.fail, self._too_late())
                held.callback(timer.cancel)
            return Job(self, loaded, answers, held, started, record, called)
        except EdgellmError as error:
            await held.aclose()
            raise problem_of(error, called) from error
        except BaseException:
            await held.aclose()
            raise

    async def _hold(
        self, held: AsyncExitStack, client: str, name: str, n: int, make: Callable[[Model], Sequence[Generation]]
    ) -> tuple[Loaded, Sequence[Generation]]:
        started = monotonic()
        await held.enter_async_context(self.turns.turn(client, n))
        self.metrics.waiting.add(monotonic() - started)
        loaded = await held.enter_async_context(self.models.use(name))
        return loaded, await asyncio.to_thread(make, loaded.model)

    async def ask(
        self,
        request: Request,
        name: str | None,
        work: Callable[[Model], Result],
        called: Mapping[str, str] | None = None,
        idle: float | None = None,
    ) -> Result:
        """What some work with a model gives, in a thread, when its turn has come. Raises ApiProblem."""
        name = await self.models.find(name)
        request.scope["state"]["record"]["model"] = name
        try:
            return await self._awaited(self._asked(request.scope["state"]["client"], name, work, idle))
        except EdgellmError as error:
            raise problem_of(error, called) from error

    async def _asked(self, client: str, name: str, work: Callable[[Model], Result], idle: float | None) -> Result:
        async with self.turns.turn(client), self.models.use(name) as loaded:
            if idle is not None:
                loaded.idle = idle
            return await asyncio.to_thread(work, loaded.model)

    def _too_late(self) -> ApiProblem:
        return ApiProblem(504, f"the answer was not there after {self.config.timeout:g} seconds", code="timeout")

    # --- how it goes --------------------------------------------------------------------------------------

    def gauges(self) -> dict[str, float]:
        """Numbers of this moment, for the metrics."""
        now: dict[str, float] = {
            "uptime_seconds": monotonic() - self.started,
            "requests_open": self.metrics.n_open,
            "answers_running": self.turns.n_running,
            "queue_length": self.turns.n_waiting,
            "models_loaded": len(self.models.loaded),
            "model_loads_total": self.models.n_loads,
            "models_bytes": sum(loaded.n_bytes for loaded in self.models.loaded),
            "memory_used_bytes": _used_bytes(),
            "memory_available_bytes": available_memory(),
        }
        joules = self._energy.joules()
        return now if joules is None else {**now, "machine_energy_joules_total": joules}

    def status(self) -> dict[str, Any]:
        """How it goes, for people."""
        loaded = [
            {
                "name": one.name,
                "bytes": one.n_bytes,
                "users": one.n_users,
                "idle_seconds": round(monotonic() - one.used_at, 1),
                "context": one.model.n_ctx,
            }
            for one in self.models.loaded
        ]
        metrics = self.metrics
        return {
            "version": __version__,
            "models": loaded,
            **{name: round(number, 3) for name, number in self.gauges().items()},
            "prompt_tokens": metrics.n_prompt_tokens,
            "prompt_tokens_cached": metrics.n_reused_tokens,
            "generated_tokens": metrics.n_generated_tokens,
        }


def _stopping() -> ApiProblem:
    return ApiProblem(503, "the server is stopping", headers={"Retry-After": "5"})


def _used_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
