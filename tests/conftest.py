"""Fixtures for all floors: real models, and the folder of extra conformance files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def _heed_ignored_signals() -> None:
    """Let the programs that tests start begin with the default for every signal, however the run was started.

    `nohup` and background jobs of a script start a run that ignores some, and what it starts inherits that. A
    handler is not inherited. This one does nothing, so the run itself goes on as if the signal were ignored.
    """
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_heed_ignored_signals()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of extra conformance files: $EDGELLM_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("EDGELLM_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"extra conformance files are not here ({folder}); EDGELLM_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, 98 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M in Q4_K_M, 253 MB; fetched once into the user's own EDGELLM_HOME."""
    return _pulled("gemma3-270m")


def _pulled(name: str) -> Path:
    from edgellm import hub

    return hub.pull(name)
