"""One process per model: a lock that the operating system takes back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from edgellm.errors import FileProblem
from edgellm.files import home
from edgellm.files.locking import acquire


@contextlib.contextmanager
def only_one(what: Path, taken: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `what`, a path below home().

    `taken` is called once if someone else holds it: it may raise, else the lock is waited for. The empty lock file
    stays: removing it would let two processes hold two files of the same name. Raises FileProblem where none can be.
    """
    path = home() / "locks" / f"{what.relative_to(home())}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        acquire(lock, taken)
    except OSError as problem:
        raise FileProblem(
            f"nothing can be kept in {home()}: {problem.strerror or problem}; EDGELLM_HOME can name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
