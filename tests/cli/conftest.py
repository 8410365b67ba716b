from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgellm as package
from edgellm.graph.tuner import TASK as TUNING_TASK

FAKE = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
REAL = [sys.executable, "-m", "edgellm"]

Result = subprocess.CompletedProcess


def beside_first_start(stderr: str) -> str:
    """What a real model says beside the progress of a first start.

    Any start may be a first one: settings that were measured on a busy machine are measured again on a quiet one.
    """
    progress = ("edgellm: compiling kernels", f"edgellm: {TUNING_TASK}")
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(progress))


@pytest.fixture(autouse=True)
def same_package_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests start runs the edgellm that they import, installed or not."""
    places = [str(Path(package.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(home: Path, tmp_path: Path) -> str:
    """A file that the fake engine takes for a chat model."""
    path = tmp_path / "chat.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def base_model(home: Path, tmp_path: Path) -> str:
    """A file that the fake engine takes for a model without a chat template."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def edgellm() -> Callable[..., Result[str]]:
    """Run the command in its own process, on the fake engine unless `real`; outputs are bytes if `raw_output`."""

    def run(
        *args: str, stdin: str | bytes | None = None, real: bool = False, raw_output: bool = False, **options: Any
    ) -> Result[Any]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        options |= {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run([*(REAL if real else FAKE), *args], capture_output=True, timeout=60, **options)
        if raw_output:
            return done
        return Result(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
