"""An answer for asyncio: it is computed in a thread of its own, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from edgellm.engine.generation import Generation
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

Result = TypeVar("Result")


class AsyncGeneration(AsyncIterator[str]):
    """Pieces of text for `async for`; `await` gives the `Generation` with all of them.

    A task that is cancelled while it waits ends the answer. So do `cancel`, from any thread, and the end of the block
    that it is the asynchronous context manager of. Errors come where they are waited for: see `Model.generate`.
    """

    def __init__(self, begin: Callable[[], Generation]) -> None:
        """begin: makes the generation, which takes a moment: a template is rendered, a grammar compiled."""
        self._begin = begin
        self._generation: Generation | None = None
        self._is_cancelled = False
        self._thread = ThreadPoolExecutor(1, "edgellm-answer")

    @property
    def generation(self) -> Generation:
        """What is known of the answer so far: stats, reasoning, calls. Raises UsageError before it has begun."""
        if self._generation is None:
            raise UsageError("the answer has not begun; iterate over it, or await it, first")
        return self._generation

    def cancel(self) -> None:
        """Stop soon, also in the middle of a long prompt. From any thread."""
        self._is_cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    async def aclose(self) -> None:
        """Stop now; what was computed stays in the cache for the next prompt."""
        self.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece = await self._in_thread(self._next)
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __await__(self) -> Generator[object, None, Generation]:
        return self._in_thread(self._whole).__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except asyncio.CancelledError:
            self.cancel()
            with suppress(RuntimeError):  # it is closed already
                self._thread.submit(self._close)
            raise

    def _begun(self) -> Generation:
        if self._generation is None:
            begun = self._begin()
            if not isinstance(begun, Generation):
                raise UsageError(
                    "n gives several answers; begin each by itself, and await them together", parameter="n"
                )
            self._generation = begun
            if self._is_cancelled:
                self._generation.close()
        return self._generation

    def _next(self) -> str | None:
        return next(self._begun(), None)

    def _whole(self) -> Generation:
        generation = self._begun()
        for _ in generation:
            pass
        return generation

    def _close(self) -> None:
        if self._generation is not None:
            self._generation.close()
