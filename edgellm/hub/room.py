"""Room on the disk: asked for before bytes come, and one clear line when it ends all the same."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import DownloadError, size_text

# A file takes more than its bytes: the file system keeps books of its own.
_MARGIN_BYTES = 1 << 20
_MARGIN_SHARE = 0.01

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(DownloadError):
    """The disk cannot hold what would be fetched."""


def ask_for_room(folder: Path, n_bytes: int) -> None:
    """Raise NoRoom unless the disk that `folder` is on, or will be on, has `n_bytes` free and a margin."""
    if n_bytes <= 0:
        return
    needed = int(n_bytes * (1 + _MARGIN_SHARE)) + _MARGIN_BYTES
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise NoRoom(f"this needs {size_text(needed)}, and the disk of {there} has {size_text(free)} free")


@contextlib.contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Inside, a disk that takes no more is a NoRoom; what was written stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        why = "does not take files this large" if error.errno == errno.EFBIG else "is full"
        raise NoRoom(f"what has arrived is kept, but the disk of {folder} {why}") from None
