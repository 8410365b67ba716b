"""One process per model: a lock that the operating system takes back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from edgellm.errors import FileProblem
from edgellm.files import home


@contextlib.contextmanager
def only_one(what: Path, taken: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `what`, a path below home().

    `taken` is called once if someone else holds it: it may raise, else the lock is waited for. The empty lock file
    stays: removing it would let two processes hold two files of the same name. Raises FileProblem where none can be.
    """
    path = home() / "locks" / f"{what.relative_to(home())}.lock"
    lock = FileLock(path)
    is_taken = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        is_taken = True
    except OSError as problem:
        raise FileProblem(
            f"nothing can be kept in {home()}: {problem.strerror or problem}; EDGELLM_HOME can name another folder"
        ) from None
    if is_taken:
        taken()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
