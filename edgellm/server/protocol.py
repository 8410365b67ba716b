"""HTTP and the event loop below it: httptools and uvloop where they are installed, else what Python brings.

With them, the event loop needs a third less processor time for each token.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any

from edgellm.server.problems import ApiProblem
from edgellm.server.wire import EXTENSION, Wire

MOST_HEAD = 64 << 10  # bytes that a request may have beside its body: its address and its headers
FIELD = 4  # bytes between the names and values of headers


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run something to its end in an event loop of its own."""
    if find_spec("uvloop") is None:
        asyncio.run(main)
        return
    import uvloop

    uvloop.run(main)


def http_settings() -> dict[str, Any]:
    """How uvicorn is to read requests; whichever way, within MOST_HEAD."""
    if find_spec("httptools") is None:
        return {"http": _by_h11(), "h11_max_incomplete_event_size": MOST_HEAD}
    return {"http": _bounded()}


def refusal(is_too_large: bool, target: bytes) -> bytes:
    """The whole response to what is no request, in the shape that the interface has for errors.

    target: what is known of the address that was meant; often nothing.
    """
    status, phrase = (431, "Request Header Fields Too Large") if is_too_large else (400, "Bad Request")
    message = "what came is no HTTP/1.1 request that can be read; send a well-formed one"
    if is_too_large:
        message = (
            f"the head of the request is too large: its address and headers have more than {MOST_HEAD} bytes; send less"
        )
    path = target.decode("latin-1").partition("?")[0]
    body = json.dumps(ApiProblem(status, message).shaped_for(path)).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def _end(protocol: Any, response: bytes) -> None:
    """Close a connection with a response, unless another one is on its way, in the middle of which it would come."""
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete or not cycle.response_started:
        protocol.transport.write(response)
    protocol.transport.close()


def _by_h11() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Shaped(H11Protocol):
        """Refuses what is no request in the shape of other errors."""

        def send_400_response(self, msg: str) -> None:
            unread = self.conn.trailing_data[0]
            first_line = unread[:MOST_HEAD].partition(b"\r\n")[0].split(b" ")
            _end(self, refusal(len(unread) > MOST_HEAD, first_line[1] if len(first_line) > 1 else b""))

    return Shaped


def _bounded() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
        """Refuses requests whose head is too large, or whose trailers are; httptools itself takes any.

        Each request comes with a wire, see `edgellm.server.wire`.
        """

        transport: asyncio.Transport
        n_fields = 0  # bytes of this request's headers
        n_unread = 0  # bytes since the last of them, or since the last piece of a body

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            self.n_unread += len(data)
            super().data_received(data)
            if self.n_unread > MOST_HEAD and not self.transport.is_closing():
                self.send_400_response("")

        def send_400_response(self, msg: str) -> None:
            is_too_large = max(self.n_fields, self.n_unread) > MOST_HEAD
            _end(self, refusal(is_too_large, getattr(self, "url", None) or b""))

        def on_message_begin(self) -> None:
            self.n_fields = 0
            super().on_message_begin()
            if self.scheme == "http" and sys.platform != "win32":  # nothing lies between the transport and its socket
                self.scope["extensions"] = {EXTENSION: Wire(self.transport)}  # type: ignore[dict-item]

        def on_header(self, name: bytes, value: bytes) -> None:
            self.n_unread = 0
            self.n_fields += len(name) + len(value) + FIELD
            if self.n_fields > MOST_HEAD:
                raise ValueError("the headers are too large")  # which the parser takes for a malformed request
            super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            self.n_unread = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.n_unread = 0
            super().on_message_complete()

    return Bounded
