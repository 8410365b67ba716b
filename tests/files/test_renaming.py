"""Renaming over a file that somebody has open, as Windows refuses it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import files
from edgellm.errors import UsageError
from edgellm.files import atomic_write, refuse_target, renaming

IN_USE = "another program, such as a running edgellm, has it open; end that and try again"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Rename as Windows does while a file is open, so many times; the pauses that were made are in the list."""

    def build(n_refused: int) -> list[float]:
        pauses: list[float] = []
        calls = {name: getattr(os, name) for name in ("replace", "rename")}

        def refusing(name: str):
            def rename(source: Path, target: Path) -> None:
                nonlocal n_refused
                if Path(target).exists() and n_refused > 0:
                    n_refused -= 1
                    raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))
                calls[name](source, target)

            return rename

        monkeypatch.setattr(files, "WINDOWS", True)
        monkeypatch.setattr(renaming, "WINDOWS", True)
        monkeypatch.setattr(renaming.time, "sleep", pauses.append)
        for name in calls:
            monkeypatch.setattr(os, name, refusing(name))
        return pauses

    return build


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    return path


def write(target: Path) -> None:
    with atomic_write(target) as file:
        file.write(b"new")


def test_a_file_that_stays_in_use_is_said_and_stays_as_it_was(windows, target: Path) -> None:
    pauses = windows(n_refused=1000)
    with pytest.raises(PermissionError) as caught:
        write(target)
    assert (caught.value.filename, caught.value.strerror) == (str(target), IN_USE)
    assert sum(pauses) < 2
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_is_in_use_for_a_moment_is_waited_for(windows, target: Path) -> None:
    pauses = windows(n_refused=2)
    write(target)
    assert target.read_bytes() == b"new"
    assert len(pauses) == 2


def test_it_is_noticed_before_the_work(windows, target: Path) -> None:
    windows(n_refused=1)
    with pytest.raises(UsageError, match=r"out\.gguf is in use by another program, such as a running edgellm; end "):
        refuse_target(target)
    refuse_target(target)  # it has been closed
    assert target.read_bytes() == b"old"


def test_another_reason_is_told_as_it_is(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError) as caught:
        write(target)
    assert (caught.value.filename, caught.value.strerror) == (str(target), "Operation not permitted")


def test_quantize_and_the_command_line_say_so(windows, target: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program opens the target while the work goes on."""
    from edgellm.cli import app, main

    windows(n_refused=1000)
    monkeypatch.setattr(app, "_run", lambda args: write(target))
    assert main(["quantize"]) == 1
    assert capsys.readouterr() == ("", f"edgellm: error: {target}: {IN_USE}\n")
