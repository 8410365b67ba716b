"""The application on a socket, run by uvicorn until somebody ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from edgellm.errors import EdgellmError, UsageError
from edgellm.server.app import Application
from edgellm.server.problems import ApiProblem
from edgellm.server.protocol import http_settings
from edgellm.server.settings import ServerConfig

BACKLOG = 512  # connections that wait to be taken
SECONDS_TO_TELL = 2  # clients that their answers end, when the server does
SWITCH_SECONDS = 0.0005  # so soon may the event loop have the interpreter while a step is prepared


class _Quiet(uvicorn.Server):
    """A uvicorn that says "closing" to requests which come while the last answers are written.

    Answers that are not ready after `seconds` end with an error in the words of their interface. uvicorn itself would
    only cut them off.
    """

    def __init__(self, config: uvicorn.Config, application: Application, seconds: float) -> None:
        super().__init__(config)
        self._application, self._seconds = application, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._application.guard.is_closing = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.guard.is_closing = True
        timer = asyncio.get_running_loop().call_later(self._seconds, self._application.server.stop)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


class _Handler(logging.Handler):
    """What uvicorn has to say, in the server's own log."""

    def __init__(self, log: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log({"level": record.levelname.lower(), "message": record.getMessage()[:500]})


def listen(config: ServerConfig) -> socket.socket:
    """A socket that listens where the config says. Raises UsageError when it cannot."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Of a socket whose protocol is named, asyncio sends small parts at once. Else each answer on a connection that is
    # kept open would wait for the client to confirm the part before, some 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((config.host, config.port))
        found.listen(BACKLOG)
        found.setblocking(False)
    except (OSError, UnicodeError) as error:
        found.close()
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise UsageError(
                f"port is {config.port}, which another program uses on {config.host}; choose another, or 0 for any",
                parameter="port",
            ) from None
        if number == errno.EACCES:
            raise UsageError(f"port is {config.port}, which this user may not take; choose one above 1023",
                             parameter="port") from None  # fmt: skip
        raise UsageError(
            f"host is {config.host!r}, where this machine cannot listen ({getattr(error, 'strerror', error)}); "
            "expected an address of it, such as 127.0.0.1",
            parameter="host",
        ) from None
    return found


@contextlib.contextmanager
def heard(log: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Inside, what uvicorn has to say goes to the server's own log and nowhere else."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "asyncio")]
    usual = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    *of_uvicorn, of_asyncio = loggers
    for logger in of_uvicorn:
        logger.handlers, logger.propagate = [_Handler(log)], False
    # It warns of every part that is written to a client who has left meanwhile.
    of_asyncio.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, usual, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def uvicorn_for(application: Application, config: ServerConfig) -> uvicorn.Server:
    """What answers on a socket, by `serve`."""
    settings = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(config.shutdown_timeout) + SECONDS_TO_TELL,
        **http_settings(),
        ws="none",
    )
    return _Quiet(settings, application, config.shutdown_timeout)


async def serve(
    server: uvicorn.Server,
    application: Application,
    listening: socket.socket,
    preload: str | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM, or `server.should_exit`; then let what is being written end.

    preload:  a model that is loaded first. ready: is called when requests are taken.
    Raises EdgellmError when that model cannot be loaded.
    """
    switch = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        if preload is not None:
            try:
                await application.server.models.preload(preload)
            except ApiProblem as problem:
                cause = problem.__cause__
                raise cause if isinstance(cause, EdgellmError) else EdgellmError(problem.message) from None
        ready()
        await server.serve(sockets=[listening])
    finally:
        sys.setswitchinterval(switch)
        listening.close()
        await application.server.models.close()
