"""From a work folder to the places of files: all of a model or checkpoint at once, of one commit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from edgellm.files import rename
from edgellm.hub.download import Notice, Progress
from edgellm.hub.huggingface import HubFile, fetch_from_hub, look_up, place_in_work
from edgellm.hub.integrity import ANY_SHA256, digest_of, fault_of, record_of, remember
from edgellm.hub.network import NotThere
from edgellm.hub.parts import fetched_bytes
from edgellm.hub.room import ask_for_room

_COMMIT = "commit"  # a file of the work folder


def of_one_commit(work: Path, look: Callable[[str | None], list[HubFile]], begun: str | None = None) -> list[HubFile]:
    """What to fetch, at the commit that an earlier try began with, or at the present one; the work folder keeps it.

    look:   finds the files at a commit, or at the present one when given None.
    begun:  the commit of what is in its place already.

    Raises DownloadError.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        begun = (work / _COMMIT).read_text(encoding="utf-8")
    try:
        files = look(begun or None)
    except NotThere:  # a commit can be rewritten away
        if not begun:
            raise
        files = look(None)
    (work / _COMMIT).write_text(files[0].commit, encoding="utf-8")
    return files


def bring(
    files: list[tuple[HubFile, Path]], work: Path, progress: Progress, notice: Notice, magic: bytes = b""
) -> None:
    """Fetch the files that are not whole in their places yet; when all have come, put them there.

    files:  what to fetch, of one commit, and the place of each.
    magic:  what each must begin with.

    Raises DownloadError, HashMismatchError, and NoRoom before anything is fetched.
    """
    lacking = [(_told_in_full(file), place) for file, place in files if not _is_in_place(file, place)]
    there = sum(fetched_bytes(place_in_work(file, work)) for file, _ in lacking)
    ask_for_room(work, sum(file.size or 0 for file, _ in lacking) - there)
    fetched = [(fetch_from_hub(file, work, progress, notice, magic), file, place) for file, place in lacking]
    for path, file, place in fetched:
        put(path, place, notice)
        remember(place, file.digest or digest_of(place, ANY_SHA256), file.commit)


def _is_in_place(file: HubFile, place: Path) -> bool:
    if file.digest is None:  # then only the commit tells what it must be
        record = record_of(place)
        if record is None or record.commit != file.commit:
            return False
    return fault_of(place, file.size, file.digest) is None


def _told_in_full(file: HubFile) -> HubFile:
    """A listing may leave out sizes and digests; the file itself has them."""
    return file if file.digest or file.size is not None else look_up(file.repo, file.name, file.commit)


def put(path: Path, place: Path, notice: Notice) -> None:
    """Rename a whole file to its place, instead of whatever is there; a folder with something in it is kept aside."""
    with open(path, "rb+") as file:  # a file that takes its final name must survive a power cut whole
        os.fsync(file.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        try:
            place.rmdir()
        except OSError:
            aside = _free_name(place)
            place.rename(aside)
            notice(f"the folder {place} is in the way; it is called {aside.name} now")
    rename(path, place)


def _free_name(place: Path) -> Path:
    number = 1
    while (aside := place.with_name(f"{place.name}.{number}.old")).exists():
        number += 1
    return aside
