"""Work folders: what has been fetched of a model or checkpoint that is not whole yet.

A work folder lies on the disk of what it will become, so that the last step is a rename. In it are whole files, parts
of files (`NAME.partial`), and a note beside each part (`NAME.partial.json`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgellm.files import home

_WORK = ".partial"
_PART = ".partial"
FETCHED = ".fetched"  # a whole file that waits for others


class Note(NamedTuple):
    """What is kept beside a part: the bytes of the whole file, and how the server calls this state of it."""

    size: int = 0
    validator: str = ""


def work_folder(place: Path) -> Path:
    """Where the parts of what will be `place` (a model's first file, a checkpoint's folder) lie until it is whole."""
    top, *rest = place.relative_to(home()).parts
    return home().joinpath(top, _WORK, *rest)


def unfinished(top: Path) -> dict[Path, int]:
    """The places below a folder of home() that have a work folder, and the bytes that were fetched for each."""
    there: dict[Path, int] = {}
    for file in sorted((top / _WORK).rglob("*")):
        if is_fetched(file):
            place = top / file.parent.relative_to(top / _WORK)
            there[place] = there.get(place, 0) + size_of(file)
    return there


def is_fetched(file: Path) -> bool:
    """Whether a file of a work folder has bytes that came over the network; others are notes, or made from these."""
    return file.name.endswith((_PART, FETCHED, ".whl")) and file.is_file()


def whole_size(work: Path) -> int:
    """The bytes of all files of which something has been fetched; 0 if one of them is not known."""
    files = [file for file in work.glob("*") if is_fetched(file)]
    sizes = [read_note(file).size if file.name.endswith(_PART) else size_of(file) for file in files]
    return sum(sizes) if all(sizes) else 0


@contextlib.contextmanager
def working_in(work: Path) -> Iterator[Path]:
    """Make a work folder and remove it when the work is done; one with fetched bytes outlives an error."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except BaseException:
        if not any(map(is_fetched, work.glob("*"))):
            clear(work)
        raise
    clear(work)


def clear(work: Path) -> None:
    """Remove a work folder, and the folders above it that hold no other."""
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):  # rmdir refuses a folder that still holds something
        while work.name != _WORK:
            work = work.parent
            work.rmdir()


def part_of(target: Path) -> Path:
    """Where the bytes of a file lie that is not whole yet."""
    return target.with_name(f"{target.name}{_PART}")


def fetched_bytes(target: Path) -> int:
    """How much of a file is in its work folder."""
    return size_of(target) or size_of(part_of(target))


def write_note(part: Path, note: Note) -> None:
    """Keep a note beside a part."""
    _note_of(part).write_text(json.dumps(note._asdict()), encoding="utf-8")


def read_note(part: Path) -> Note:
    """The note beside a part; an empty one if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        kept = json.loads(_note_of(part).read_text(encoding="utf-8"))
        return Note(int(kept["size"]), str(kept["validator"]))
    return Note()


def drop(part: Path) -> None:
    """Remove a part and its note."""
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """The bytes of a file; 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
