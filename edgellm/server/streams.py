"""Answers that go out as they are made, and clients that leave meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgellm.server.settings import ServerConfig

Result = TypeVar("Result")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
PING = b": ping\n\n"  # a comment of server-sent events, which clients pass over


def as_json(value: Any) -> str:
    """JSON of one line. Raises ValueError for what is no number."""
    return _encode(value)


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {as_json(value)}\n\n".encode()


class TextEvent:
    """Server-sent events in which one text changes and all else is the same: that is put into JSON once.

    of:  gives the value of an event with some text in it, anywhere, once.
    """

    def __init__(self, of: Callable[[str], Any]) -> None:
        place = secrets.token_hex(16)
        self._before, self._behind = event(of(place)).split(as_json(place).encode())

    def __call__(self, text: str) -> bytes:
        return self._before + as_json(text).encode() + self._behind


def line(value: Any) -> bytes:
    """A line of NDJSON, as Ollama streams."""
    return f"{as_json(value)}\n".encode()


class JsonAnswer(Response):
    """A whole answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return as_json(content).encode()


class EventStream(Response):
    """Sends what an iterator gives, at once. When the client leaves, the iterator is closed.

    close:  gives back what the iterator holds, also if it was never begun.
    ping:   is sent after a while of silence; empty sends nothing.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        config: ServerConfig,
        ping: bytes = PING,
        media_type: str = "text/event-stream",
    ) -> None:
        self.status_code = 200
        self.background = None
        self.parts, self.close, self.ping = parts, close, ping
        self.every = config.ping
        # A client that reads too slowly must not hold a turn for ever.
        self.most_seconds = config.timeout + config.ping if config.timeout else None
        self.raw_headers = [
            (b"content-type", f"{media_type}; charset=utf-8".encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            tasks = [asyncio.ensure_future(work) for work in (self._pour(send), _gone(receive))]
            if self.ping:
                tasks.append(asyncio.ensure_future(self._keep_alive(send)))
            await asyncio.wait(tasks[:2], timeout=self.most_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                scope["state"]["record"]["gone"] = True
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self.close()
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]

    async def _pour(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.aclosing(self.parts) as parts:  # type: ignore[type-var]
            async for part in parts:
                self._sent_at = loop.time()
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        while True:
            await asyncio.sleep(max(0.05, self._sent_at + self.every - loop.time()))
            if loop.time() - self._sent_at >= self.every:
                self._sent_at = loop.time()
                await send({"type": "http.response.body", "body": self.ping, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What some work gives; when the client leaves, it is cancelled. The body must have been read.

    Raises ClientDisconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
