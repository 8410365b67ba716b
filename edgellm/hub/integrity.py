"""Whether a file is whole.

A file is hashed when it is new or has changed; then a record says what it must be and when it was found to be so.
Records lie under records/ in home(), each at the path of its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgellm.files import home

Progress = Callable[[int, int, str], None]

MISSING = "it is not there"
ANY_SHA256 = "0" * 64  # asks `digest_of` for a SHA-256
GGUF = b"GGUF"  # what a model file begins with

_CHUNK = 1 << 20
_CLOCK_REALTIME_COARSE = 5  # of Linux, for which Python has no name
_TICK_NS = 20_000_000  # of clocks whose steps cannot be asked for
_RECENT_NS, _MOST_WAIT = 1_000_000_000, 0.5  # how old a time is that may be waited for, and how long, in seconds
_QUICK = 32 << 20  # bytes that are hashed before a person wonders what takes so long


class Record(NamedTuple):
    """What a file was when its digest was right; `commit` is that of the repository it came from."""

    size: int
    digest: str
    mtime_ns: int
    commit: str = ""


def fault_of(
    path: Path,
    size: int | None = None,
    digest: str | None = None,
    *,
    thorough: bool = False,
    progress: Progress | None = None,
) -> str | None:
    """What is wrong with a file, in a few words; None when it is whole.

    size:      bytes it must have; digest: what `digest_of` must give. Without a digest both are those of the file's
               record, and a file without a record only has to begin as a GGUF file does.
    thorough:  hash it even if it looks as it did when its digest was right.
    """
    record = record_of(path)
    if digest is None and record is not None:
        size, digest = record.size, record.digest
    try:
        status = path.stat()
        fault = _fault_of_status(status, size)
        if fault is None and digest is None:
            with open(path, "rb") as file:
                fault = None if file.read(len(GGUF)) == GGUF else "it is not a GGUF file"
        if fault is not None or digest is None:
            return fault
        known = record is not None and (record.mtime_ns, record.digest) == (status.st_mtime_ns, digest)
        if known and not thorough:
            return None if os.access(path, os.R_OK) else "it cannot be read: Permission denied"
        if (found := digest_of(path, digest, progress)) != digest:
            if record is not None:  # what it must be is still worth knowing
                _write(path, record._replace(mtime_ns=0))
            return f"its bytes have changed (digest {found[:12]}…, expected {digest[:12]}…)"
    except OSError as error:
        if not os.path.lexists(path):
            return MISSING
        return "it is a link that leads nowhere" if not path.exists() else f"it cannot be read: {error.strerror}"
    if not known:
        _write(path, Record(status.st_size, digest, status.st_mtime_ns, record.commit if record else ""))
    return None


def digest_of(path: Path, like: str, progress: Progress | None = None) -> str:
    """The digest of a file, of the kind that `like` is: SHA-256 (64 hex digits), or Git's SHA-1 of a blob (40)."""
    total = path.stat().st_size
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % total, usedforsecurity=False)
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress and done >= _QUICK:
                progress(done, total, f"checking {path.name}")
    return digest.hexdigest()


def remember(path: Path, digest: str, commit: str = "") -> None:
    """Keep that the file at `path`, as it is now, has this digest."""
    status = path.stat()
    _write(path, Record(status.st_size, digest, status.st_mtime_ns, commit))


def record_of(path: Path) -> Record | None:
    """The record of a file; None when there is none that can be read."""
    try:
        record = Record(**json.loads(_place_of(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    kinds = (int, str, int, str)
    fields = (record.size, record.digest, record.mtime_ns, record.commit)
    return record if all(type(field) is kind for field, kind in zip(fields, kinds, strict=True)) else None


def forget(path: Path) -> None:
    """Drop the record of a file that is no more."""
    with contextlib.suppress(OSError, ValueError):
        _place_of(path).unlink()


def _fault_of_status(status: os.stat_result, size: int | None) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if status.st_size == 0:
        return "it is empty"
    if size is not None and status.st_size != size:
        return f"it has {status.st_size:,} bytes, expected {size:,}"
    return None


def _wait_for_another_time(mtime_ns: int) -> None:
    """Until a change of the file would have a later time than this one, by which the change is known.

    File systems take their times from a clock that goes on with the system's ticks, some milliseconds apart, and more
    where a machine is busy or paused. A time that lies far from the present says nothing of that clock.
    """
    end = time.monotonic() + _MOST_WAIT
    while 0 <= time.time_ns() - mtime_ns < _RECENT_NS and _clock_of_files() <= mtime_ns and time.monotonic() < end:
        time.sleep(0.001)


def _clock_of_files() -> int:
    """The time that a file which is written now gets, in nanoseconds, or one before that."""
    if sys.platform == "linux":
        return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    return time.time_ns() - _TICK_NS


def _write(path: Path, record: Record) -> None:
    """A record that cannot be kept costs time only: the file is hashed again."""
    _wait_for_another_time(record.mtime_ns)
    with contextlib.suppress(OSError, ValueError):
        place = _place_of(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f"{place.name}.{os.getpid()}")
        new.write_text(json.dumps(record._asdict()), encoding="utf-8")
        os.replace(new, place)


def _place_of(path: Path) -> Path:
    return home() / "records" / f"{path.relative_to(home())}.json"
