"""The application: which address is answered by what."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from edgellm.server import plain
from edgellm.server.guard import Guard
from edgellm.server.keys import Keys
from edgellm.server.openai import chat, completions, models
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Server
from edgellm.server.settings import ServerConfig

Handler = Callable[[Server, Request], Awaitable[Response]]


def routes_of(page: plain.Page) -> list[tuple[str, str, Handler]]:
    """Method, path and handler of everything that is answered."""
    return [
        ("GET", "/", page.index),
        ("GET", "/page/{name:path}", page.file),
        ("GET", "/health", plain.health),
        ("GET", "/metrics", plain.metrics),
        ("GET", "/status", plain.status),
        ("GET", "/v1/models", models.list_models),
        ("GET", "/v1/models/{model:path}", models.show_model),
        ("POST", "/v1/chat/completions", chat.chat),
        ("POST", "/v1/completions", completions.complete),
    ]


class Application:
    """An ASGI application, and the server behind it."""

    def __init__(
        self,
        config: ServerConfig,
        named: dict[str, Path] | None = None,
        keys: Keys | None = None,
        log: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        routes = [
            Route(path, self._endpoint(path, handler), methods=[method])
            for method, path, handler in routes_of(plain.Page())
        ]
        router = Router(routes, redirect_slashes=False, default=_nothing_here, lifespan=self._lifespan)
        self.server = Server(config, named)
        self.guard = Guard(router, config, Keys({}) if keys is None else keys, self.server.metrics, log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)

    def _endpoint(self, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            request.scope["state"]["route"] = path
            return await handler(self.server, request)

        return endpoint

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        idle = asyncio.ensure_future(self.server.models.unload_idle())
        try:
            yield
        finally:
            idle.cancel()
            await asyncio.gather(idle, return_exceptions=True)
            await self.server.models.close()


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiProblem(404, f"there is nothing at {json.dumps(scope['path'][:100])}; docs/server.md tells what there is")


def create_app(
    config: ServerConfig | None = None,
    named: dict[str, Path] | None = None,
    keys: Keys | None = None,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Application:
    """The server as an ASGI application, for uvicorn and the like.

    named:  the models that can be asked for, paths by name; None for all that are installed.
    keys:   who may ask; without any, everybody who reaches it.
    log:    hears of every request, as a dict of plain values; of contents only if the config says so.
    """
    return Application(config or ServerConfig(), named, keys, log)
