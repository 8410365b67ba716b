"""How answers are given, whole or as a stream.

What is wrong with a request is told by its status, unless a stream has to wait for long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from edgellm.server.server import Job
from edgellm.server.settings import ServerConfig
from edgellm.server.streams import PING, EventStream, JsonAnswer


async def in_one_piece(beginning: Coroutine[Any, Any, Job], answer: Callable[[Job], dict[str, Any]]) -> JsonAnswer:
    """What `answer` makes of a job when all of it is written."""
    job = await beginning
    try:
        await job.finish()
        return JsonAnswer(answer(job))
    finally:
        await job.close()


async def streamed(
    beginning: Coroutine[Any, Any, Job],
    parts: Callable[[Job], AsyncIterator[bytes]],
    wrong: Callable[[Exception], bytes],
    config: ServerConfig,
    ping: bytes = PING,
    media_type: str = "text/event-stream",
) -> EventStream:
    """The stream of a job. After some seconds of waiting for it, the stream begins and shows signs of life.

    parts:  what is sent of a job, which is closed at the end. wrong: how the interface tells of an error in a stream.
    """
    task = asyncio.ensure_future(beginning)

    async def close() -> None:
        task.cancel()
        with contextlib.suppress(BaseException):
            await (await task).close()

    async def late() -> AsyncIterator[bytes]:
        try:
            job = await asyncio.shield(task)
        except Exception as error:
            yield wrong(error)
            return
        async with contextlib.aclosing(parts(job)) as each:  # type: ignore[type-var]
            async for part in each:
                yield part

    try:
        await asyncio.wait((task,), timeout=config.ping)
    except BaseException:
        await close()
        raise
    to_send = parts(task.result()) if task.done() else late()
    return EventStream(to_send, close, config, ping, media_type)
