"""Where the tiles of a model lie: in the cache folder, in a file for each model, with a note of what was seen of it.

The name comes from where the model's file is, so a model that changes has its tiles replaced. They go with
the model, when `edgellm rm` deletes it, or when others are written and the model is gone or nobody has used them for a
season.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from edgellm import files
from edgellm.files import private
from edgellm.files.unfinished import clear_unfinished

VERSION = 1  # of the layout
TASK = "laying out weights"  # what progress is told while they are made
_DAY = 86400  # seconds
_UNUSED_DAYS = 90


def folder() -> Path:
    return files.home() / "tiles"


def path_of(model: Path) -> Path:
    """The file with the tiles of a model; of a split one, `model` is its first part."""
    real = os.path.realpath(model)
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", Path(real).stem)[:48]
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return folder() / f"{readable}-{name}-v{VERSION}.tiles"


def bytes_of(model: Path) -> int:
    """What the tiles of a model take on disk; 0 where there are none."""
    with contextlib.suppress(OSError, files.FileProblem):
        return path_of(model).stat().st_size
    return 0


def remove(model: Path) -> int:
    """Delete the tiles of a model; returns the bytes freed."""
    with contextlib.suppress(OSError, files.FileProblem):
        freed = bytes_of(model)
        path = path_of(model)
        _note_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return freed
    return 0


# --- what was seen of a file ----------------------------------------------------------------------------------


def _note_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _state(status: os.stat_result) -> list[int]:
    """What is another when a file has been changed or replaced; nobody can set the time of the last change back."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def state_of(path: Path) -> list[int]:
    """Of the model's file: what its tiles were made of. Raises OSError where it cannot be told."""
    return _state(os.stat(path))


def is_known(path: Path, status: os.stat_result) -> bool:
    """Whether the digests of a file in this state were found right before; its use is noted, once a day."""
    note = _note_of(path)
    try:
        known = json.loads(private.read(note) or b"{}")["state"] == _state(status)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    with contextlib.suppress(OSError):
        if known and time.time() - note.stat().st_mtime > _DAY:
            os.utime(note)
    return known


def remember(path: Path, model: Path, status: os.stat_result) -> None:
    """From now on, a file in this state is known."""
    text = json.dumps({"model": os.path.realpath(model), "state": _state(status)})
    private.keep(_note_of(path), text.encode())


def clean_up() -> None:
    """Remove what killed processes have left, and tiles of models that are gone or that nobody uses any more."""
    here = folder()
    clear_unfinished(here)
    with contextlib.suppress(OSError):
        for path in here.glob("*.tiles"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                note = _note_of(path)
                last_used = (note if note.exists() else path).stat().st_mtime
                is_orphan = note.exists() and not os.path.lexists(json.loads(private.read(note) or b"")["model"])
                if is_orphan or time.time() - last_used > _UNUSED_DAYS * _DAY:
                    note.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
