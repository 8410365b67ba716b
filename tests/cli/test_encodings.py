"""Consoles and files that cannot hold every character: something is shown in its place, and nothing ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from edgellm.cli import app, main

from .conftest import Result

NARROW = ["ascii", "cp1252", "cp437"]
ANSWER = "Zoë sagt: naïve → 你好 🙂"


@pytest.mark.parametrize("encoding", NARROW[:2])
@pytest.mark.parametrize("command", ["", *app.COMMANDS])
def test_every_help(command: str, encoding: str, edgellm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = edgellm(*command.split(), "--help", real=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: edgellm")


@pytest.mark.parametrize("encoding", [*NARROW, "utf-8"])
def test_an_answer(
    encoding: str, edgellm: Callable[..., Result[str]], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake engine says again what it is told."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = edgellm("run", model, "-p", ANSWER, raw_output=True)
    assert done.returncode == 0, done.stderr
    assert ANSWER.encode(encoding, "replace") in done.stdout.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("encoding", NARROW)
def test_an_error(encoding: str, edgellm: Callable[..., Result[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("PYTHONUTF8", "1")  # so that the argument arrives whole
    done = edgellm("info", "→.gguf", raw_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(rb"edgellm: error: \u2192.gguf: no such file")


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.TextIOWrapper]:
    """Standard output as a file of Windows gets it, in a code page; the system is said to be Windows meanwhile."""

    def build(page: str) -> io.TextIOWrapper:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=page)
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    return build


@pytest.mark.parametrize("page", NARROW)
def test_files_and_pipes_of_windows_get_utf8(page: str, on_windows, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = on_windows(page)
    monkeypatch.setattr(app.app, "invoke", lambda context: print(ANSWER))
    assert main(["list"]) == 0
    assert stream.buffer.getvalue().decode().strip() == ANSWER


def test_unless_somebody_wants_another(on_windows, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = on_windows("cp1252")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setattr(app.app, "invoke", lambda context: print(ANSWER))
    assert main(["list"]) == 0
    assert stream.buffer.getvalue().strip() == ANSWER.encode("cp1252", "replace")


def test_a_closed_pipe_of_windows_ends_silently(on_windows, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """It is an "invalid argument" there."""
    on_windows("cp1252")
    forgotten = []
    monkeypatch.setattr(app, "_forget_stdout", lambda: forgotten.append(True))

    def closed(context: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(app.app, "invoke", closed)
    assert main(["list"]) == app.OUTPUT_CLOSED
    assert forgotten == [True]
    assert capsys.readouterr().err == ""
