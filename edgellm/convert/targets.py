"""What can be known of a target before hours of work: that it can be written, and has room."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgellm.errors import FileProblem
from edgellm.files import check_room, refuse_target


def check_target(target: Path, sources: Iterable[Path] = (), n_bytes: int = 0) -> None:
    """Raise UsageError for a target that cannot be (see `refuse_target`), FileProblem for one that cannot be written.

    n_bytes:  what will be written at least.
    """
    refuse_target(target, sources)
    check_folder(target.parent)
    check_room(target, n_bytes)


def files_of(*paths: Path | None) -> Iterator[Path]:
    """What is read, and so must not be written over: the files themselves, and those in folders."""
    for path in paths:
        if path is not None and path.is_dir():
            yield from (entry for entry in path.iterdir() if entry.suffix != ".gguf")
        elif path is not None:
            yield path


def check_folder(folder: Path) -> None:
    """Raise FileProblem for a folder in which nothing can be written, whether it is there or will be made.

    Permissions do not tell: a disk may be read-only, and root may do anything. So a file without a name is made.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise FileProblem(f"{there}: {os.strerror(errno.EEXIST)}")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as problem:
        raise FileProblem(f"{folder} cannot be written to: {problem.strerror or problem}") from None
