"""The models of the server: loaded when they are asked for, and unloaded when others need the room or nobody asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

from edgellm import hub
from edgellm.engine import Model
from edgellm.engine.size import bytes_of
from edgellm.errors import EdgellmError
from edgellm.hub.names import did_you_mean, nearest
from edgellm.machine import total_memory
from edgellm.params import RuntimeConfig
from edgellm.server.driver import Driver
from edgellm.server.problems import ApiProblem, problem_of

SHARE_OF_MEMORY = 0.8  # of the machine's, that loaded models may take together
LOOKS_EVERY = 1.0  # seconds, for models that nobody has used for long
LATEST = ":latest"  # what Ollama's clients put behind a name


@dataclass
class Loaded:
    """A model in memory.

    n_users:  requests that use it now. used_at: when the last one began or ended, on the clock of `time.monotonic`.
    idle:     seconds after which it is unloaded when nobody uses it.
    """

    name: str
    model: Model
    driver: Driver
    n_bytes: int
    n_users: int = 0
    used_at: float = 0.0
    idle: float = float("inf")

    def close(self) -> None:
        self.driver.close()
        self.model.close()


class Models:
    """Those that can be asked for, by name, and those of them that are loaded. For one event loop.

    named:  paths by name; None for all models that are installed, looked for anew when a name is not known.
    """

    def __init__(
        self, named: Mapping[str, Path] | None, runtime: RuntimeConfig, memory_bytes: int | None, idle: float
    ) -> None:
        self._named = dict(named) if named is not None else None
        self._installed: dict[str, Path] = {}
        self._runtime = runtime
        self._most_bytes = memory_bytes if memory_bytes is not None else int(SHARE_OF_MEMORY * total_memory())
        self._idle = idle or float("inf")
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()
        self.started = int(time())
        self.n_loads = 0

    # --- names --------------------------------------------------------------------------------------------

    async def names(self) -> dict[str, Path]:
        """Paths by name, of all that can be asked for."""
        if self._named is not None:
            return self._named
        found = await asyncio.to_thread(hub.installed)
        self._installed = {model.name: model.path for model in found}
        return self._installed

    async def find(self, name: str | None) -> str:
        """The name of a model as it stands in the list; None means the only one, or the one that was loaded last.

        Raises ApiProblem for one that is not there.
        """
        known = self._named if self._named is not None else self._installed
        if name is not None and (found := _among(name, known)):
            return found
        known = await self.names()
        if name is not None and (found := _among(name, known)):
            return found
        if name is None:
            if len(known) == 1 or (known and self._named is not None):
                return next(iter(known))
            expected = f"name one of {', '.join(known)}" if known else "this server has none; see edgellm pull"
            raise ApiProblem(400, f"model is missing; {expected}", "model")
        hint = did_you_mean(nearest(name, known)) if known else ""
        there = f"; there are {', '.join(known)}" if known else "; this server has none"
        raise ApiProblem(
            404, f"the model {name[:100]!r} does not exist here{hint or there}", "model", code="model_not_found"
        )

    @property
    def loaded(self) -> list[Loaded]:
        """Those in memory, the one that was used last at the end."""
        return sorted(self._loaded.values(), key=lambda loaded: loaded.used_at)

    # --- use ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Loaded]:
        """A model by its name in the list, loaded if need be; it stays at least as long as this lasts."""
        loaded = self._loaded.get(name)
        if loaded is None:
            async with self._loading:
                loaded = self._loaded.get(name) or await self._load(name)
                loaded.n_users += 1
        else:
            loaded.n_users += 1
        try:
            loaded.used_at = monotonic()
            yield loaded
        finally:
            loaded.n_users -= 1
            loaded.used_at = monotonic()

    async def preload(self, name: str) -> None:
        """Load a model before anybody asks for it. Raises ApiProblem for one that cannot be loaded."""
        async with self.use(name):
            pass

    async def _load(self, name: str) -> Loaded:
        path = (await self.names())[name]
        try:
            await self._make_room(path.stat().st_size)
            model = await _shielded(lambda: _open(path, self._runtime))
        except OSError as error:
            raise ApiProblem(500, f"the model {name} cannot be loaded: {error.strerror}") from error
        except EdgellmError as error:
            problem = problem_of(error)
            text = str(error).replace(str(path), name)  # a client need not know where files lie
            raise ApiProblem(problem.status if problem.status >= 500 else 500, text) from error
        loaded = Loaded(name, model, Driver(name), bytes_of(model), used_at=monotonic(), idle=self._idle)
        self._loaded[name] = loaded
        self.n_loads += 1
        await self._make_room(0)
        return loaded

    async def _make_room(self, n_bytes: int) -> None:
        """Unload models that nobody uses, the least recently used first, until so much more fits."""
        while sum(loaded.n_bytes for loaded in self._loaded.values()) + n_bytes > self._most_bytes:
            unused = [loaded for loaded in self.loaded[: None if n_bytes else -1] if not loaded.n_users]
            if not unused:
                return  # it may fit all the same: not all of a cache is used
            await self.unload(unused[0])

    async def unload(self, loaded: Loaded) -> None:
        """Unload a model that nobody uses."""
        if self._loaded.pop(loaded.name, None) is loaded:
            await asyncio.to_thread(loaded.close)

    async def unload_idle(self) -> None:
        """Keep unloading models that nobody has asked for lately."""
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            async with self._loading:
                now = monotonic()
                for loaded in self.loaded:
                    if not loaded.n_users and now - loaded.used_at >= loaded.idle:
                        await self.unload(loaded)

    async def close(self) -> None:
        async with self._loading:
            for loaded in self.loaded:
                self._loaded.pop(loaded.name, None)
                await asyncio.to_thread(loaded.close)


def _among(name: str, known: Iterable[str]) -> str | None:
    for spelling in (name, name.removesuffix(LATEST)):
        if spelling in known:
            return spelling
    return None


def _open(path: Path, runtime: RuntimeConfig) -> Model:
    return Model(path, runtime)


async def _shielded(work: Callable[[], Model]) -> Model:
    """Run in a thread; when nobody waits for the model any more, it is closed as soon as it is there."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_closed)
        raise


def _closed(task: asyncio.Future[Model]) -> None:
    if task.exception() is None:
        task.result().close()
