"""Where edgellm keeps its files, and how it writes them: beside the target, then renamed.

What is in `private` only we can have written; `unfinished` knows the files that are being written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from edgellm.errors import FileProblem, UsageError, size_text
from edgellm.files import private
from edgellm.files.notice import say_once
from edgellm.files.renaming import WINDOWS, is_in_use, rename
from edgellm.files.unfinished import clear_unfinished, unfinished

_MAX_LINKS = 40  # from a name to the file that it means

AnyPath: TypeAlias = "str | os.PathLike[str]"

__all__ = [
    "AnyPath",
    "atomic_write",
    "check_room",
    "conversations_folder",
    "existing_file",
    "home",
    "kernels_folder",
    "models_folder",
    "prefixes_folder",
    "refuse_target",
    "rename",
    "sha256_of",
    "templates_folder",
]


def home() -> Path:
    """The folder of models and compiled kernels: `EDGELLM_HOME`, or `edgellm` in the user's cache folder.

    For a user without a home folder it is a private one among the temporary folders, which is said once.
    Raises FileProblem when there cannot be one.
    """
    if chosen := os.environ.get("EDGELLM_HOME"):
        return Path(os.path.expanduser(chosen))
    if sys.platform == "win32":
        base: str | Path | None = os.environ.get("LOCALAPPDATA") or user_folder("AppData", "Local")
    elif sys.platform == "darwin":
        base = user_folder("Library", "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or user_folder(".cache")
    return Path(base) / "edgellm" if base else _without_home()


def user_folder(*parts: str) -> Path | None:
    """A folder in the user's home; None where there is no home, or only "/", which containers give to strangers."""
    try:
        found = Path.home()
    except RuntimeError:
        return None
    is_root = found == Path(found.anchor)
    return None if is_root and not os.access(found, os.W_OK) else found.joinpath(*parts)


def _without_home() -> Path:
    """A private folder among the temporary ones, for a user whose home folder nobody knows."""
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / (f"edgellm-{os.getuid()}" if hasattr(os, "getuid") else "edgellm")
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        private.check(folder)
    except OSError as problem:
        raise FileProblem(
            f"this user has no home folder, and none among the temporary ones can stand in for it: {problem.strerror}; "
            "set EDGELLM_HOME to a folder where models and compiled kernels can be kept"
        ) from None
    say_once(
        f"this user has no home folder, so edgellm keeps models and compiled kernels in {folder}; "
        "EDGELLM_HOME can name another folder"
    )
    return folder


def existing_file(name: AnyPath) -> Path | None:
    """The file that a name is the path of, with ~ for the user's home; None where there is none."""
    path = os.path.expanduser(os.fspath(name))
    # os.path, for a name may be no path at all, too long for one, or hold a zero byte.
    return Path(path) if os.path.isfile(path) else None


def models_folder() -> Path:
    """Where downloaded models live."""
    return home() / "models"


def kernels_folder() -> Path:
    """Where compiled kernels live."""
    return home() / "kernels"


def templates_folder() -> Path:
    """Where compiled chat templates live."""
    return home() / "templates"


def prefixes_folder() -> Path:
    """Where keys and values of long prompts are kept."""
    return home() / "prefixes"


def conversations_folder() -> Path:
    """Where chats are kept."""
    return data_home() / "conversations"


def data_home() -> Path:
    """The folder of what cannot be made again: `EDGELLM_HOME` or the user's folder of data, nobody's cache."""
    if os.environ.get("EDGELLM_HOME") or sys.platform == "win32":
        return home()
    if sys.platform == "darwin":
        base: str | Path | None = user_folder("Library", "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or user_folder(".local", "share")
    return Path(base) / "edgellm" if base else home()


def refuse_target(target: Path, sources: Iterable[Path] = ()) -> None:
    """Raise UsageError for a `target` that cannot be: a folder, a device, or one of the files that are being read.

    Called before hours of work begin; links and other spellings of a path are followed.
    """
    try:
        _followed(target)
    except OSError as problem:
        raise UsageError(f"{target} cannot be written: {problem.strerror}; choose another name") from None
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
    if WINDOWS and is_in_use(target):
        raise UsageError(f"{target} is in use by another program, such as a running edgellm; end that, or choose "
                         "another name to write")  # fmt: skip


def check_room(target: Path, n_bytes: int) -> None:
    """Raise FileProblem when the disk of `target` has less room than `n_bytes`.

    What killed processes have left beside it is removed first: it may be most of a model.
    """
    folder = _nearest_folder(target)
    clear_unfinished(folder)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise FileProblem(f"{target} needs {size_text(n_bytes)}, and the disk of {folder} has {size_text(free)} free")


def _nearest_folder(target: Path) -> Path:
    """The folder that a file is in or, while that is not there, the one that it will be made in."""
    return next(folder for folder in Path(os.path.realpath(target)).parents if folder.exists())


@contextlib.contextmanager
def atomic_write(target: Path, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `target` for writing; it takes the target's name only when the block succeeds.

    On any error, Ctrl-C included, the half-written file is removed and the target stays as it was; what a killed
    process has left in that folder goes too. The file is on the disk before it has its name, so that a power cut
    leaves the old one or the new one, whole. It gets the permissions of the one that it replaces; a private one is for
    its owner alone.

    A link of the user's own stays one: what it leads to is written. One that another user made is refused, for it
    may lead to any file of ours. OSError names the target, whatever could not be done.
    """
    real = _followed(target)
    if real.exists() and not real.is_file():
        raise FileExistsError(errno.EEXIST, "it is a folder or device, not a file", str(target))
    real.parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(real.parent)
    with unfinished(real, 0o600 if private else _permissions(real), called=target) as file:
        yield file


def _followed(target: Path) -> Path:
    """Where links of the user's own lead to. Raises PermissionError for one that another user made."""
    place = target
    for _ in range(_MAX_LINKS):
        if not place.is_symlink():
            return place
        if hasattr(os, "getuid") and os.lstat(place).st_uid not in (os.getuid(), 0):
            raise PermissionError(errno.EPERM, "it is a link that another user made", str(target))
        place = place.parent / os.readlink(place)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))


def _permissions(path: Path) -> int | None:
    """Those of a file that is ours to replace; None where there is no such file."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid()):
            return stat.S_IMODE(status.st_mode) & 0o777
    return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
