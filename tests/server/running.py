"""A server that really runs: uvicorn on a free port of 127.0.0.1, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from edgellm.server.app import Application, create_app
from edgellm.server.keys import Keys
from edgellm.server.protocol import run
from edgellm.server.running import heard, listen, serve, uvicorn_for
from edgellm.server.settings import ServerConfig


class Running:
    """url: where it is. log: the records of its requests. application: what answers."""

    def __init__(self, url: str, application: Application, log: list[dict[str, Any]], server: uvicorn.Server) -> None:
        self.url, self.application, self.log, self._server = url, application, log, server

    def stop(self) -> None:
        """As SIGTERM does."""
        self._server.should_exit = True

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def status(self) -> dict[str, Any]:
        return self.get("/status").json()


@contextmanager
def running(models: dict[str, Path] | None, keys: Keys | None = None, **settings: Any) -> Iterator[Running]:
    """A server until the end of the block; then it has ended in order."""
    config = ServerConfig(port=0, **{"shutdown_timeout": 2.0, **settings})
    log: list[dict[str, Any]] = []
    application = create_app(config, models, keys, log.append)
    listening = listen(config)
    port = listening.getsockname()[1]
    server = uvicorn_for(application, config)
    is_ready = threading.Event()
    thread = threading.Thread(
        target=lambda: run(serve(server, application, listening, next(iter(models or ()), None), is_ready.set))
    )
    with heard(log.append):
        thread.start()
        try:
            assert is_ready.wait(60)
            yield Running(f"http://127.0.0.1:{port}", application, log, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(is_so: Callable[[], bool], seconds: float = 30.0) -> float:
    """How long it took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds
        time.sleep(0.002)
    return time.monotonic() - started
