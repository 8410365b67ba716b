"""A lock on an open file or folder, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock


def acquire(lock: FileLock, taken: Callable[[], None]) -> None:
    """Take a lock. taken: called once if someone else holds it; it may raise, else the lock is waited for."""
    from filelock import Timeout  # seldom needed

    try:
        lock.acquire(timeout=0)
    except Timeout:
        taken()
        lock.acquire()


if sys.platform == "win32":  # where nobody else can write an open file anyway

    def try_lock(handle: int, or_else: bool = True) -> bool:
        return or_else

    @contextlib.contextmanager
    def alone_at(target: Path, taken: Callable[[], None]) -> Iterator[None]:
        from filelock import FileLock

        lock = FileLock(_beside(target))
        acquire(lock, taken)
        try:
            yield
        finally:
            lock.release()

else:
    import fcntl

    def try_lock(handle: int, or_else: bool = True) -> bool:
        """Take the lock of an open file, if nobody has it; `or_else` where the file system knows no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return or_else
        return True

    @contextlib.contextmanager
    def alone_at(target: Path, taken: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a file that is replaced while it is held, and need not be there yet.

        The lock is a file beside the target, so whoever can write the target sees it, whichever home they have. It is
        removed by who held it; who waited for it then finds that it is gone, and makes another.

        taken:  called once if someone else holds it, before it is waited for.

        Raises OSError where no such file can be.
        """
        handle = _locked(_beside(target), taken)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(_beside(target))
            os.close(handle)

    def _locked(path: str, taken: Callable[[], None]) -> int:
        """An open handle of the file that has this name, with its lock."""
        is_told = False
        while True:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
            try:
                if not try_lock(handle):
                    if not is_told:
                        taken()
                    is_told = True
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if os.path.samestat(os.lstat(path), os.fstat(handle)):
                    return handle
            except FileNotFoundError:  # who held it has removed it
                pass
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _beside(target: Path) -> str:
    folder, name = os.path.split(os.path.realpath(target))
    return os.path.join(folder, f".{name[:200]}.lock")
