"""The log of a run: one JSON object a line and step, whole whenever the process ends.

A step may have a second line, of the fields that came later. When a run is resumed from a checkpoint, lines of steps
after it go: those steps are done again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem
from edgellm.files import atomic_write
from edgellm.machine import peak_memory
from edgellm.train.loop import Step


def as_entry(step: Step) -> dict[str, Any]:
    """What a line holds: the fields of a step that have a value, and `memory`, the most bytes that were in use."""
    known = {name: value for name, value in asdict(step).items() if value not in (None, {})}
    return known | {"memory": peak_memory()}


class Log:
    """Open a log for writing. Raises FileProblem when it cannot be written, now or at a step.

    resumed_at:  keep what it holds up to this step; None begins a new one.
    """

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        self._path = path
        kept = [] if resumed_at is None else [entry for entry in read_log(path) if entry["step"] <= resumed_at]
        with self._naming():
            with atomic_write(path) as file:
                file.write("".join(map(_line, kept)).encode())
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # until `close`

    def write(self, entry: Mapping[str, Any]) -> None:
        with self._naming():
            self._file.write(_line(entry))
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be flushed was told when it was written
            self._file.close()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise FileProblem(f"{self._path} cannot be written: {problem.strerror}") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, those of one step as one; lines that are no entries (cut off by a kill, edited) are left
    out.

    Raises FileProblem when it is there and cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise FileProblem(f"{path} cannot be read: {problem.strerror}") from None
    entries: dict[int, dict[str, Any]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if _is_entry(entry):
                entries.setdefault(entry["step"], {}).update(entry)
    return list(entries.values())


def _is_entry(entry: Any) -> bool:
    """Whether a line says of a step what others read of it: a file may have been damaged or edited."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    figures = entry.get("figures", {})
    return isinstance(figures, dict) and all(type(value) in (int, float) for value in figures.values())


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
