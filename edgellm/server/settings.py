"""How the server behaves: every default of it, once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgellm.checks import flag, number, take, text, texts, whole_number
from edgellm.errors import UsageError, shown
from edgellm.params import RuntimeConfig

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
LEAST_MEMORY = 1 << 20  # bytes; the smallest models take more
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s*]+")


def _names(name: str, value: object) -> tuple[str, ...]:
    return tuple(texts(name, value))


def _origins(name: str, value: object) -> tuple[str, ...]:
    """Pages as a browser names them, without a path, in small letters."""
    found = tuple(origin.lower() for origin in _names(name, value))
    for origin in found:
        if origin != "null" and not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"{name} holds {shown(origin)}; expected a scheme and a host and no more, such as http://localhost:3000",
                parameter=name,
            )
    return found


@dataclass(frozen=True)
class ServerConfig:
    """How the server behaves.

    host, port:       where it listens; port 0 takes a free one.
    parallel:         answers that are written at the same time.
    queue:            requests that may wait for their turn; beyond that a client is told to come back (429).
    timeout:          seconds that a request may take in all, with waiting; 0 for no limit.
    body_timeout:     seconds that a client may take to send its request.
    shutdown_timeout: seconds that running answers get to end when the server is told to.
    body_bytes:       of a request, at most.
    upload_bytes:     of a file for a batch, at most; and of all kept files, ten times as many.
    ping:             seconds after which a silent stream gets a sign of life.
    idle:             seconds after which a model that nobody used is unloaded; 0 keeps it.
    memory_bytes:     that loaded models may take together; None takes most of the machine's.
    allowed_hosts:    names by which clients may call it, beside this machine's own and plain addresses.
    allowed_origins:  web pages that may use it, such as "http://localhost:3000".
    log_contents:     put what was asked and answered into the log.
    runtime:          how models are run.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    parallel: int = 16
    queue: int = 128
    timeout: float = 600.0
    body_timeout: float = 30.0
    shutdown_timeout: float = 10.0
    body_bytes: int = 16 << 20
    upload_bytes: int = 100 << 20
    ping: float = 15.0
    idle: float = 900.0
    memory_bytes: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    log_contents: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        take(self, "host", text)
        take(self, "port", whole_number, 0, 65535)
        take(self, "parallel", whole_number, 1, 1024)
        take(self, "queue", whole_number, 0)
        take(self, "timeout", number, 0)
        take(self, "body_timeout", number, 0.1)
        take(self, "shutdown_timeout", number, 0)
        take(self, "body_bytes", whole_number, 1)
        take(self, "upload_bytes", whole_number, 1)
        take(self, "ping", number, 0.1)
        take(self, "idle", number, 0)
        take(self, "memory_bytes", whole_number, LEAST_MEMORY, optional=True)
        take(self, "allowed_hosts", _names)
        take(self, "allowed_origins", _origins)
        take(self, "log_contents", flag)
