"""Where edgellm keeps its files, and how it writes them: beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from edgellm.errors import FileProblem, UsageError

AnyPath: TypeAlias = "str | os.PathLike[str]"

WINDOWS = sys.platform == "win32"  # where a file that somebody has open or mapped keeps its name
_PAUSES = (0.1, 0.2, 0.4, 0.8)  # seconds; virus scanners look at new files that long


def home() -> Path:
    """The folder of models and compiled kernels: `EDGELLM_HOME`, or `edgellm` in the user's cache folder."""
    if chosen := os.environ.get("EDGELLM_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgellm"


def models_folder() -> Path:
    """Where downloaded models live."""
    return home() / "models"


def kernels_folder() -> Path:
    """Where compiled kernels live."""
    return home() / "kernels"


def refuse_target(target: Path, sources: Iterable[Path] = ()) -> None:
    """Raise UsageError for a `target` that cannot be: a folder, a device, or one of the files that are being read.

    Called before hours of work begin; links and other spellings of a path are followed.
    """
    folder = _nearest_folder(target)
    if not folder.is_dir():
        raise UsageError(f"{target} cannot be: {folder} is a file")
    if not target.exists():
        return
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "a device"
        raise UsageError(f"{target} is {kind}; expected the name of a file to write")
    if any(target.samefile(source) for source in sources if source.exists()):
        raise UsageError(f"{target} is a file that is being read; choose another name to write")
    if WINDOWS and _is_in_use(target):
        raise UsageError(f"{target} is in use by another program, such as a running edgellm; end that, or choose "
                         "another name to write")  # fmt: skip


def check_room(target: Path, n_bytes: int) -> None:
    """Raise FileProblem when the disk of `target` has less room than `n_bytes`."""
    folder = _nearest_folder(target)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise FileProblem(
            f"{target} needs {n_bytes / 1e9:.2f} GB, and the disk of {folder} has {free / 1e9:.2f} GB free"
        )


def _is_in_use(target: Path) -> bool:
    """Whether Windows refuses to rename a file: one to its own name as well, and nothing else comes of that."""
    try:
        os.rename(target, target)
    except PermissionError:
        return True
    return False


def _nearest_folder(target: Path) -> Path:
    """The folder that a file is in or, while that is not there, the one that it will be made in."""
    return next(folder for folder in Path(os.path.realpath(target)).parents if folder.exists())


def rename(source: Path, target: Path) -> None:
    """Rename a file, over another if there is one.

    Windows refuses while somebody has either open or mapped: that is waited for a moment, and then a PermissionError
    says so.
    """
    for pause in _PAUSES if WINDOWS else ():
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(pause)
    try:
        os.replace(source, target)
    except PermissionError:
        if not WINDOWS or not target.exists():
            raise
        why = "another program, such as a running edgellm, has it open; end that and try again"
        raise PermissionError(errno.EACCES, why, str(target)) from None


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[BinaryIO]:
    """Open a file beside `target` for writing; it takes the target's name only when the block succeeds.

    On any error, Ctrl-C included, the half-written file is removed and the target stays as it was. A target that
    is a link stays one: what it leads to is written. OSError names the target, whatever could not be done.
    """
    real = Path(os.path.realpath(target)) if target.is_symlink() else target
    if real.exists() and not real.is_file():
        raise FileExistsError(errno.EEXIST, "it is a folder or device, not a file", str(target))
    real.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    temporary = real.with_name(f".{real.name[:32]}.{secrets.token_hex(8)}")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
        rename(temporary, real)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(problem, OSError) and problem.filename in (None, str(temporary)):
            raise type(problem)(problem.errno, problem.strerror, str(target)) from None
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
