"""Answers that go out as they are made, and clients that leave meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgellm.server.settings import ServerConfig
from edgellm.server.wire import Wire, wire_of

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


class Form:
    """Bytes in which some values of JSON change and all else is the same: that is put into JSON once.

    of:  gives the bytes with n values in them, each once and in their order.
    """

    def __init__(self, of: Callable[..., bytes], n: int = 1) -> None:
        places = [secrets.token_hex(16) for _ in range(n)]
        rest = of(*places)
        self._between = []
        for place in places:
            before, rest = rest.split(as_json(place).encode())
            self._between.append(before)
        self._end = rest

    def __call__(self, *values: Any) -> bytes:
        found = b""
        for before, value in zip(self._between, values, strict=True):
            found += before + as_json(value).encode()
        return found + self._end


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
        self._wire: Wire | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        self._wire = wire_of(scope)
        # What goes over a wire is in chunks already.
        headers = self.raw_headers if self._wire is None else [*self.raw_headers, (b"transfer-encoding", b"chunked")]
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            tasks = [asyncio.ensure_future(work) for work in (self._pour(send), _gone(receive))]
            if self.ping:
                tasks.append(asyncio.ensure_future(self._keep_alive(send)))
            await asyncio.wait(tasks[:2], timeout=self.most_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                scope["state"]["record"]["gone"] = True
        finally:
            self._close_wire()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self.close()
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]

    async def _pour(self, send: Send) -> None:
        async with contextlib.aclosing(self.parts) as parts:  # type: ignore[type-var]
            async for part in parts:
                if part:
                    await self._send(send, part)
        self._close_wire()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, part: bytes) -> None:
        self._sent_at = monotonic()
        if self._wire is not None:
            self._wire.stop()
        await send({"type": "http.response.body", "body": part, "more_body": True})

    def _close_wire(self) -> None:
        if self._wire is not None:
            self._wire.close()

    async def _keep_alive(self, send: Send) -> None:
        self._sent_at = monotonic()
        while True:
            await asyncio.sleep(max(0.05, self.every - self._silence()))
            if self._silence() >= self.every:
                await self._send(send, self.ping)

    def _silence(self) -> float:
        """Seconds since something was sent."""
        return monotonic() - max(self._sent_at, self._wire.sent_at if self._wire is not None else 0.0)


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
