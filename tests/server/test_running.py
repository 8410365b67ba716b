"""A server leaves the process that it ran in as it was."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from .running import running

NAMES = ("uvicorn", "uvicorn.error", "asyncio", "edgellm")


def settings() -> list[object]:
    loggers = [logging.getLogger(name) for name in NAMES]
    return [sys.getswitchinterval(), *((logger.handlers, logger.propagate, logger.level) for logger in loggers)]


def test_a_server_that_has_ended_leaves_nothing_behind(tiny_chat: Path) -> None:
    before = settings()
    with running({"tiny": tiny_chat}) as outer, running({"tiny": tiny_chat}) as inner:
        assert outer.status() and inner.status()
        logging.getLogger("uvicorn.error").warning("no more\nfiles")
        assert inner.log[-1] == {"level": "warning", "message": "no more\nfiles"}
        assert settings() != before
    assert settings() == before
