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
from edgellm.server.anthropic import messages
from edgellm.server.guard import Guard
from edgellm.server.keys import Keys
from edgellm.server.ollama import chat as ollama_chat
from edgellm.server.ollama import models as ollama_models
from edgellm.server.openai import batches, chat, completions, embeddings, files, models, responses, tokenizing
from edgellm.server.openapi import description
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Server
from edgellm.server.settings import ServerConfig
from edgellm.server.streams import JsonAnswer

Handler = Callable[[Server, Request], Awaitable[Response]]


def routes_of(
    page: plain.Page, kept: files.Files, all_batches: batches.Batches, stored: responses.Responses
) -> list[tuple[str, str, Handler]]:
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
        ("POST", "/v1/responses", stored.create),
        ("POST", "/v1/responses/input_tokens", stored.input_tokens),
        ("GET", "/v1/responses/{id}", stored.show),
        ("DELETE", "/v1/responses/{id}", stored.delete),
        ("GET", "/v1/responses/{id}/input_items", stored.items),
        ("POST", "/v1/embeddings", embeddings.embed),
        ("POST", "/v1/rerank", embeddings.rerank),
        ("POST", "/tokenize", tokenizing.tokenize),
        ("POST", "/detokenize", tokenizing.detokenize),
        ("GET", "/tokenizer_info", tokenizing.tokenizer_info),
        ("POST", "/v1/files", kept.upload),
        ("GET", "/v1/files", kept.index),
        ("GET", "/v1/files/{id}", kept.show),
        ("DELETE", "/v1/files/{id}", kept.delete),
        ("GET", "/v1/files/{id}/content", kept.content),
        ("POST", "/v1/batches", all_batches.create),
        ("GET", "/v1/batches", all_batches.index),
        ("GET", "/v1/batches/{id}", all_batches.show),
        ("POST", "/v1/batches/{id}/cancel", all_batches.cancel),
        ("POST", "/v1/messages", messages.messages),
        ("POST", "/v1/messages/count_tokens", messages.count_tokens),
        ("POST", "/api/chat", ollama_chat.chat),
        ("POST", "/api/generate", ollama_chat.generate),
        ("GET", "/api/tags", ollama_models.tags),
        ("GET", "/api/ps", ollama_models.running),
        ("POST", "/api/show", ollama_models.show),
        ("POST", "/api/embed", ollama_models.embed),
        ("POST", "/api/embeddings", ollama_models.embeddings),
        ("GET", "/api/version", ollama_models.version),
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
        self.server = Server(config, named)
        self._files = files.Files(self.server)
        self._batches = batches.Batches(self._files, lambda: router)
        table = routes_of(plain.Page(), self._files, self._batches, responses.Responses())
        described = description([("GET", "/openapi.json"), *((method, path) for method, path, _ in table)])

        async def describe(server: Server, request: Request) -> Response:
            return JsonAnswer(described)

        table.append(("GET", "/openapi.json", describe))
        routes = [Route(path, self._endpoint(path, handler), methods=[method]) for method, path, handler in table]
        router = Router(routes, redirect_slashes=False, default=_nothing_here, lifespan=self._lifespan)
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
            await self._batches.close()
            await self.server.models.close()
            self._files.close()


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
