"""One run at a time in a folder: two would write over each other's log, checkpoints and result."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import FileProblem
from edgellm.files.locking import try_lock


@contextlib.contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is not there, and removed again if it stays empty.

    The lock is on the folder itself: nothing is left of it when the process ends, in whatever way.
    Raises FileProblem while another run is there, and for a folder that cannot be made.
    """
    if folder is None:
        yield
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FileProblem(f"{problem.filename or folder} cannot be written: {problem.strerror}") from None
    with _opened(folder) as handle:
        if not try_lock(handle):
            raise FileProblem(f"another run is training in {folder}; wait until it has ended, or choose another folder")
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    if sys.platform == "win32":  # which opens no folder
        yield -1
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as problem:
        raise FileProblem(f"{folder} cannot be read: {problem.strerror}") from None
    try:
        yield handle
    finally:
        os.close(handle)
