"""Files that are being written: beside their target, under a name of their own, until they are whole.

The writer holds a lock on its file, which the operating system drops when the process ends, however it ends. So what
a killed process left behind can be told from what a living one is writing, and whoever writes in that folder next
removes it. Windows, which lets nobody remove an open file, needs no lock for that.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgellm.files.locking import try_lock
from edgellm.files.renaming import rename

_NAME = re.compile(r"\..{1,32}\.[0-9a-f]{16}\.unfinished", re.DOTALL)
# A link is not followed, a pipe not waited for, and on Windows no line end translated.
SAFELY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_NEW_SECONDS = 60  # on Windows, a file that is whole can be removed for a moment before it gets its name


@contextlib.contextmanager
def unfinished(
    target: Path, permissions: int | None = None, to_disk: bool = True, called: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a new file in the folder of `target`; when the block succeeds, it takes the place of whatever was there.

    On any error, Ctrl-C included, the new file is removed and the target stays as it was.

    permissions:  of the file, from its first moment on; None for those that the process gives to new files.
    to_disk:      wait until the disk has all of it, so that a power cut leaves the old file or the new one whole.
    called:       the name of the target in errors, where that is another one.

    OSError names the target, whatever could not be done.
    """
    with _errors_name(called or target):
        path = _new_name(target)
        try:  # before there is a file, for the exception that a signal raises may come at any line
            while (handle := _create(path, permissions)) is None:
                path = _new_name(target)
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if to_disk:
                    os.fsync(handle)
                if sys.platform != "win32":
                    rename(path, target)  # before the lock is gone
            if sys.platform == "win32":
                rename(path, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise


def clear_unfinished(folder: Path) -> None:
    """Remove the files that processes which are gone have left in a folder. Never raises OSError.

    A file goes when it has a name that only `unfinished` gives, is ours, and nobody holds its lock. Where the file
    system knows no locks, all stay.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry.path)


@contextlib.contextmanager
def _errors_name(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.filename is None or _NAME.fullmatch(os.path.basename(str(problem.filename))):
            raise type(problem)(problem.errno, problem.strerror, str(target)) from None
        raise


def _new_name(target: Path) -> Path:
    return target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}.unfinished")


def _create(path: Path, permissions: int | None) -> int | None:
    """Make a new file and lock it: an open handle, or None if somebody took it for left behind before it was locked."""
    how = os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFELY
    handle = os.open(path, how, 0o666 if permissions is None else permissions & 0o600)
    if permissions is not None and hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # a file system without permissions
            os.fchmod(handle, permissions)
    if sys.platform == "win32" or (try_lock(handle, or_else=True) and _is_at(path, handle)):
        return handle
    os.close(handle)
    return None


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _remove_abandoned(path: str) -> None:
        if time.time() - os.lstat(path).st_mtime > _NEW_SECONDS:
            os.unlink(path)  # refused as long as the file is open

else:

    def _remove_abandoned(path: str) -> None:
        handle = os.open(path, os.O_RDWR | SAFELY)
        try:
            status = os.fstat(handle)
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
            if is_ours and try_lock(handle, or_else=False):
                os.unlink(path)
        finally:
            os.close(handle)
