"""Fetching one file so that it can be stopped at any time and goes on later."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import DownloadError, HashMismatchError, size_text
from edgellm.files import rename
from edgellm.hub.integrity import digest_of
from edgellm.hub.network import MOST_WAITS, Network, RangeRefused, Unavailable, host_of, is_short_wait
from edgellm.hub.parts import Note, drop, part_of, read_note, size_of, write_note
from edgellm.hub.room import ask_for_room

Progress = Callable[[int, int, str], None]
Notice = Callable[[str], None]

ATTEMPTS_WITHOUT_PROGRESS = 3
_PAUSE_SECONDS = 0.5
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Errand:
    """A file to fetch; `what` names it for people.

    digest:  what `digest_of` must give for the whole file; None if nobody told.
    size:    its bytes; None if nobody told.
    """

    url: str
    what: str
    network: Network
    digest: str | None = None
    size: int | None = None
    authorization: str | None = None


def download(errand: Errand, target: Path, progress: Progress, notice: Notice = lambda line: None) -> None:
    """Fetch a file into `target`, unless it is there and right; it appears only when it is whole.

    A part that an earlier try left is gone on with if it is surely of the same file: its digest will tell, or the
    server says that the file has not changed since. A connection that breaks is taken up again as long as bytes keep
    coming. A file put together from several tries that turns out wrong is thrown away and fetched anew, once.

    Raises DownloadError; HashMismatchError for a file that is not the expected one; NoRoom.
    """
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if not _wrong(errand, target):
            drop(part)
            return
        target.unlink()
    _fetch(errand, part, progress, notice)
    rename(part, target)
    drop(part)


def _fetch(errand: Errand, part: Path, progress: Progress, notice: Notice) -> None:
    """Make `part` whole."""
    if not _usable(errand, part):
        drop(part)
    begun_with = most = size_of(part)
    failures, anew = 0, False
    in_pieces = begun_with > 0
    if in_pieces:
        whole = errand.size or read_note(part).size
        notice(f"{errand.what}: resuming at {size_text(begun_with)}{f' of {size_text(whole)}' if whole else ''}")
    while True:
        try:
            _transfer(errand, part, progress)
        except (_Broken, Unavailable) as trouble:
            there = size_of(part)
            wait = trouble.wait if isinstance(trouble, Unavailable) and is_short_wait(trouble) else None
            if isinstance(trouble, Unavailable) and most == begun_with and (wait is None or failures >= MOST_WAITS - 1):
                raise  # nothing has come yet: better told than tried again
            failures = 0 if there > most else failures + 1
            most, in_pieces = max(most, there), in_pieces or there > 0
            if failures < ATTEMPTS_WITHOUT_PROGRESS:
                time.sleep(_PAUSE_SECONDS * failures if wait is None else wait)
                continue
            if errand.digest is None or _wrong(errand, part):  # else only the announced length was wrong
                kept = "; what has come is kept for the next try" if _usable(errand, part) else ""
                raise DownloadError(f"{trouble}{kept}") from None
            return
        except RangeRefused:  # there is no more to come: the part is whole, or of another file
            if not errand.digest and not errand.size:
                drop(part)
        if not (wrong := _wrong(errand, part)):
            return
        drop(part)
        if anew or not in_pieces:
            raise HashMismatchError(f"{errand.what}: {wrong}")
        anew, in_pieces = True, False
        begun_with = most = failures = 0


def _transfer(errand: Errand, part: Path, progress: Progress) -> None:
    """One request that appends to `part`. Raises _Broken when it ended before the file did."""
    have = _usable(errand, part)
    if have and have == errand.size:
        return  # stopped after its last byte
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if not errand.digest:
            headers["If-Range"] = read_note(part).validator
    with errand.network.open(errand.url, headers, errand.authorization) as response:
        start = _start_of(response)
        if start not in (0, have):
            raise RangeRefused(f"{host_of(errand.url)} sends bytes from {start} on, expected from {have} on")
        if start and not errand.digest and _validator_of(response) != read_note(part).validator:
            raise RangeRefused(f"{host_of(errand.url)} has another file now")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else errand.size or 0
        whole = errand.size or total
        ask_for_room(part.parent, whole - start)
        progress(start, total, errand.what)
        have = start
        with open(part, "ab" if start else "wb") as file:
            write_note(part, Note(whole, _validator_of(response)))
            while chunk := _read(response, errand, have, whole):
                file.write(chunk)
                have += len(chunk)
                progress(have, max(have, total) if total else 0, errand.what)
                if errand.size is not None and have > errand.size:
                    break  # whoever sends more than the file has may never end
    if have < whole:
        raise _Broken(_ended(errand, have, whole))


class _Broken(Exception):
    """A connection that ended before the file did."""


def _read(response: Any, errand: Errand, have: int, whole: int) -> bytes:
    try:
        return response.read1(_CHUNK)  # what has come is kept even if no more follows
    except TimeoutError:
        raise _Broken(f"{_ended(errand, have, whole)}: nothing came for {errand.network.timeout:g} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"{_ended(errand, have, whole)}: {error or type(error).__name__}") from None


def _ended(errand: Errand, have: int, whole: int) -> str:
    of = f" of {size_text(whole)}" if whole else ""
    return f"the connection to {host_of(errand.url)} broke after {size_text(have)}{of}"


def _start_of(response: Any) -> int:
    """The place in the file where the bytes of an answer begin."""
    if getattr(response, "status", None) != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _wrong(errand: Errand, part: Path) -> str | None:
    """In which way a part is not the whole file that was asked for."""
    if not part.exists():
        return "the server has no such part of it"
    size = size_of(part)
    if errand.size is not None and size != errand.size:
        return f"what arrived has {size:,} bytes or more, expected {errand.size:,}"
    if errand.digest and (found := digest_of(part, errand.digest)) != errand.digest:
        return f"what arrived has {'sha256' if len(found) == 64 else 'digest'} {found}, expected {errand.digest}"
    return None


def _usable(errand: Errand, part: Path) -> int:
    """The bytes of a part that can be gone on with."""
    have = size_of(part)
    if (errand.size is not None and have > errand.size) or not (errand.digest or read_note(part).validator):
        return 0
    return have


def _validator_of(response: Any) -> str:
    """What may stand in If-Range (RFC 9110, section 13.1.5); a weak ETag may not."""
    etag: str = response.headers.get("ETag") or ""
    return etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""
