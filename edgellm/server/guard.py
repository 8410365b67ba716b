"""What every request passes: is it for us, may who asks, and what became of it. Errors leave as the interface has them.

A web page that somebody visits can make their browser send requests to 127.0.0.1. So a request must name a host that
is ours (against DNS rebinding), and one that a page of another origin makes is refused unless that origin is allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable, MutableMapping
from time import monotonic
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.server.keys import Keys, key_in
from edgellm.server.metrics import Metrics
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.settings import ServerConfig

OPEN_TO_ALL = ("/health", "/openapi.json")  # and the page, which asks for a key itself
PAGE = ("/", "/page/")
SPARE_REQUESTS = 512  # that may be open beside those that are answered and those that wait
ALLOWED_HEADERS = b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta"  # if none is asked for
_HEADERS = re.compile(rb"[\w!#$%&'*+.^`|~, -]{1,2000}")  # names of headers, as a browser lists them
_KEPT_ID = re.compile(rb"[\w.-]{1,64}")


class Guard:
    """The application around the routes.

    log:  hears of every request, as a dict of plain values.
    """

    def __init__(
        self, routes: ASGIApp, config: ServerConfig, keys: Keys, metrics: Metrics, log: Callable[[dict[str, Any]], None]
    ) -> None:
        self.routes, self._config, self._keys, self._metrics, self._log = routes, config, keys, metrics, log
        own = socket.gethostname()
        names = {"localhost", config.host, own, f"{own}.local", *config.allowed_hosts}
        self._names = {name.lower() for name in names}
        self._most_open = config.parallel + config.queue + SPARE_REQUESTS
        self.is_closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.routes(scope, receive, send)
            return
        headers = dict(scope["headers"])
        asked = headers.get(b"x-request-id", b"")
        request_id = asked.decode() if _KEPT_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"
        record: dict[str, Any] = {"id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        scope["app"] = self
        scope["state"] = {**scope.get("state", {}), "record": record}
        added = [(b"x-request-id", request_id.encode()), *self._cors(headers)]
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        started = monotonic()
        self._metrics.n_open += 1
        try:
            try:
                if self._metrics.n_open > self._most_open:
                    raise _crowded(self._most_open)
                if self._is_preflight(scope, headers):
                    await _answer(send_noted, 204, b"", [(b"access-control-allow-headers", _allowed(headers))])
                else:
                    scope["state"]["client"] = self._client(scope, headers)
                    await self.routes(scope, receive, send_noted)
            except ClientDisconnect:
                record["gone"] = True
            except Exception as error:
                problem = _problem(error)
                record["error"] = problem.message if problem.status >= 500 else problem.code or problem.status
                if problem.status == 500 and not isinstance(error, ApiProblem):
                    record["exception"] = f"{type(error).__name__}: {error}"[:500]
                if status:
                    raise  # the answer has begun; the connection is cut
                await _send_problem(send_noted, problem, scope["path"])
        except asyncio.CancelledError:
            if self.is_closing and not status:  # a request that has not come yet as a whole, say
                await _send_problem(send_noted, _closing(), scope["path"])
            else:
                record["gone"] = True
                raise
        finally:
            self._metrics.n_open -= 1
            record |= {"status": status, "seconds": round(monotonic() - started, 4)}
            # By the path as the routes name it: what clients make up must not fill the memory of the metrics.
            self._metrics.count_request(scope["state"].get("route", "other"), status)
            self._log(record)

    # --- who may ask --------------------------------------------------------------------------------------

    def _client(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> str:
        """Who asks: the owner of a key, or an address. Raises ApiProblem for who may not."""
        if self.is_closing:
            raise _closing()
        self._check_host(headers.get(b"host", b"").decode("latin-1"))
        self._check_origin(headers)
        path = scope["path"]
        address = (scope.get("client") or ("unknown", 0))[0]
        if not self._keys or path in OPEN_TO_ALL or path == PAGE[0] or path.startswith(PAGE[1]):
            return str(address)
        owner = self._keys.owner(key_in(headers))
        if owner is None:
            what = "a wrong API key" if key_in(headers) else "no API key"
            raise ApiProblem(
                401,
                f"{what} was given; send one that this server knows, as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return owner

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name in self._names or _is_address(name):
            return
        raise ApiProblem(
            403, f"this server is not called {name[:100]!r}; start it with --allow-host to give it that name"
        )

    def _check_origin(self, headers: MutableMapping[bytes, bytes]) -> None:
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_foreign = bool(origin) and not self._is_own(origin, headers)
        is_foreign = is_foreign or (not origin and headers.get(b"sec-fetch-site") == b"cross-site")
        if is_foreign and origin not in self._config.allowed_origins:
            raise ApiProblem(403, "a page of another site may not use this server; --allow-origin lets one in")

    def _is_own(self, origin: str, headers: MutableMapping[bytes, bytes]) -> bool:
        """A page of this very server."""
        scheme, _, host = origin.lower().partition("://")
        return scheme in ("http", "https") and host == headers.get(b"host", b"").decode("latin-1").lower()

    def _is_preflight(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_asked = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        return is_asked and origin in self._config.allowed_origins

    def _cors(self, headers: MutableMapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        origin = headers.get(b"origin", b"")
        if origin.decode("latin-1") not in self._config.allowed_origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]


def _allowed(headers: MutableMapping[bytes, bytes]) -> bytes:
    """The headers that a page of an allowed origin may send: those that it asks for, as clients have their own."""
    asked = headers.get(b"access-control-request-headers", b"")
    return asked if _HEADERS.fullmatch(asked) else ALLOWED_HEADERS


def _closing() -> ApiProblem:
    return ApiProblem(503, "the server is stopping", headers={"Retry-After": "5"})


def _crowded(most: int) -> ApiProblem:
    return ApiProblem(503, f"the server has {most} requests open, and takes no more; come back a little later",
                      headers={"Retry-After": "5", "Connection": "close"})  # fmt: skip


def _host_name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    """A page cannot make a browser send an address that is not the page's own."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _problem(error: Exception) -> ApiProblem:
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = headers.get("Allow", "")
            return ApiProblem(405, f"this address takes {allowed or 'another method'}", headers=headers)
        return ApiProblem(error.status_code, str(error.detail), headers=headers)
    return problem_of(error)


async def _send_problem(send: Send, problem: ApiProblem, path: str) -> None:
    body = json.dumps(problem.shaped_for(path)).encode()
    headers = [(b"content-type", b"application/json")]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    await _answer(send, problem.status, body, headers)


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    if status != 204:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
