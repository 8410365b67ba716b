"""A program's configuration written, with a record of what stood there before, so that it can be undone."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import EdgellmError, FileProblem
from edgellm.files import atomic_write, data_home
from edgellm.server.launch import documents
from edgellm.server.launch.documents import ABSENT
from edgellm.server.launch.programs import Program, Settings

# Settings that are given only where a file has none: what a file needs at all, whoever is asked.
_ONLY_WHERE_ABSENT = (("$schema",), ("name",), ("version",), ("schema",))


@dataclass(frozen=True)
class Written:
    """path: what was written. lines: places that were set, or set back. kept: those that others changed since."""

    path: Path
    lines: list[str]
    kept: list[str]


def write(name: str, program: Program, settings: Settings) -> Written:
    """Put settings into a program's configuration; everything else in it stays.

    Raises FileProblem for a file that cannot be changed without loss; `documents.nested` is what a person would add.
    """
    path = program.path()
    values = documents.read(path)
    record = _record_of(name)
    before = _read_record(record, path) or {"path": str(path), "existed": path.exists(), "places": []}
    known = {tuple(one["place"]): one for one in before["places"]}
    done = []
    for place, value in settings.items():
        now = documents.get(values, place)
        if now == value or (place in _ONLY_WHERE_ABSENT and now is not ABSENT):
            continue
        earlier = known.get(place)
        # Written a second time: what stood there before the first is what stands there after an undo.
        if earlier is None or now != earlier["value"]:
            known[place] = {"place": list(place), "was_there": now is not ABSENT, "was": None if now is ABSENT else now}
        known[place]["value"] = value
        documents.put(values, place, value)
        done.append(_shown(place))
    for place, one in list(known.items()):  # of an earlier time, and not wanted now
        if place not in settings and documents.get(values, place) == one["value"]:
            documents.put(values, place, one["was"] if one["was_there"] else ABSENT)
            del known[place]
    if done:
        # First the record: whatever happens then can be undone.
        _save(record, json.dumps({**before, "places": list(known.values())}, indent=1))
        _save(path, documents.text_of(values, path.suffix))
    return Written(path, done, [])


def undo(name: str, program: Program) -> Written:
    """Set back what `write` set, but for what somebody has changed since.

    Raises EdgellmError if nothing was written.
    """
    path, record = program.path(), _record_of(name)
    before = _read_record(record, path)
    if before is None:
        raise EdgellmError(f"edgellm has written nothing into {path}, so there is nothing to undo")
    values = documents.read(path)
    done, kept = [], []
    for one in reversed(before["places"]):
        place = tuple(one["place"])
        if documents.get(values, place) == one["value"]:
            documents.put(values, place, one["was"] if one["was_there"] else ABSENT)
            done.append(_shown(place))
        elif documents.get(values, place) is not ABSENT:
            kept.append(_shown(place))
    if values or before["existed"]:
        _save(path, documents.text_of(values, path.suffix))
    else:
        path.unlink(missing_ok=True)
    record.unlink()
    return Written(path, done, kept)


def _record_of(name: str) -> Path:
    return data_home() / "launch" / f"{name}.json"


def _read_record(record: Path, path: Path) -> dict[str, Any] | None:
    """What was written into a file; None if nothing was, or if it was another file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(record.read_text(encoding="utf-8"))
        keys = {"place", "value", "was", "was_there"}
        if found["path"] == str(path) and all(keys <= one.keys() for one in found["places"]):
            return found
    return None


def _save(path: Path, text: str) -> None:
    try:
        is_new = not path.exists()
        with atomic_write(path) as file:
            file.write(text.encode())
        if is_new:
            path.chmod(0o600)  # it may hold a key
    except OSError as error:
        raise FileProblem(f"{path} cannot be written: {error.strerror or error}") from None


def _shown(place: documents.Place) -> str:
    return ".".join(part for part in place if part != "+")
