"""Files that only we can have written: machine code is loaded from no others.

A file is private when it is a regular file of ours under no second name, nobody else can write it, and nobody else
can put another one in its place: its folder and every folder above are ours or the system's, and nobody else can
write there. There are two exceptions above its folder: one like /tmp, where people can add files but not move those
of others (the sticky bit), and one that only a group can write which nobody but us is in. A link may stand there too,
if we or the system made it; in the place of the file or its folder it may not.

"The system" is the administrator and whoever owns the root of the file system: inside of a sandbox, that may be
another user. These rules are those of POSIX systems. On Windows, what lies in a user's own folders counts as private.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgellm.files.notice import say_once
from edgellm.files.unfinished import SAFELY, unfinished

_HAS_OWNERS = hasattr(os, "getuid")
_MAX_LINKS = 40  # on the way to a folder
_ROOM_BYTES = 1 << 18  # what the kernels of a model take, about


def read(path: Path) -> bytes | None:
    """The content of a private file; None for any other, for a folder, pipe or device, and where nothing is.

    The file is opened once and never waited for: what is judged is what is read.
    """
    file = open_file(path)
    if file is None:
        return None
    with file:
        try:
            return file.read()
        except OSError:
            return None


def open_file(path: Path) -> BinaryIO | None:
    """The same, open for reading."""
    try:
        check(path.parent)
        handle = os.open(path, os.O_RDONLY | SAFELY)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and (not _HAS_OWNERS or _is_ours_alone(status)):
            return open(handle, "rb")
    except OSError:
        pass
    os.close(handle)
    return None


def is_ours_or_nothing(path: Path) -> bool:
    """Whether a path leads to a regular file of ours, or to none: no link, pipe or file that somebody put there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and (not _HAS_OWNERS or status.st_uid == os.getuid())


def keep(path: Path, content: bytes) -> None:
    """Write a private file, whole or not at all, in place of whatever is there.

    This is for what can be made again: where it cannot be kept, that is said once, and nothing is raised.
    """
    with _saying_why(path.parent):
        make(path.parent)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        with unfinished(path, permissions=0o600, to_disk=False) as file:
            file.write(content)


def prepare(folder: Path) -> None:
    """Before work whose results `keep` will put into a folder: make it, and say once if they cannot be kept there."""
    with _saying_why(folder):
        make(folder)
        import tempfile  # here, for most starts have nothing to keep

        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM_BYTES))


def make(folder: Path) -> None:
    """Make a private folder, and those above it, unless they are there.

    What is in its place and is not private (a link, a folder of another user or one that others can write) is put
    aside under another name. Raises OSError when that cannot be done, or when others can write above it.
    """
    _make_folders(folder.parent, 0o700)
    check(folder.parent, may_be_shared=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if not _is_folder_of_ours(os.lstat(folder)):
        os.rename(folder, folder.with_name(f"{folder.name[:64]}.{secrets.token_hex(8)}.untrusted"))
        os.mkdir(folder, 0o700)


def check(folder: Path, may_be_shared: bool = False) -> None:
    """Raise OSError, saying why, unless a folder and all on the way to it are private.

    may_be_shared:  for a folder that only leads to a private one: it may be a link, or like /tmp.
    """
    if not _HAS_OWNERS:
        os.stat(folder)
        return
    trusted = _trusted()
    for place, status in _way_to(folder):
        if status.st_uid not in trusted:
            raise PermissionError(errno.EPERM, f"{place} belongs to another user", place)
        if not stat.S_ISLNK(status.st_mode) and not _only_we_move_files(status):
            raise PermissionError(errno.EPERM, f"others can write in {place} (chmod go-w ends that)", place)
    if not may_be_shared and not _is_folder_of_ours(os.lstat(folder)):
        raise PermissionError(errno.EPERM, f"{folder} is a link, or others can write there", str(folder))


def _way_to(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every folder and link on the way to a folder, that one included. Raises OSError where the way ends.

    From the top down: what was found good cannot be changed by others while the rest is looked at.
    """
    here, *todo = folder.absolute().parts
    yield here, os.lstat(here)
    n_links = 0
    while todo:
        place = os.path.join(here, todo.pop(0))
        status = os.lstat(place)
        yield place, status
        if not stat.S_ISLNK(status.st_mode):
            here = os.path.normpath(place)  # no part of it is a link, so ".." is what it seems
            continue
        n_links += 1
        if n_links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
        target = Path(os.readlink(place))
        here = target.anchor or here
        todo = [*target.relative_to(target.anchor).parts, *todo]


def _only_we_move_files(status: os.stat_result) -> bool:
    """Whether nobody else can put another file in the place of one of ours in a folder."""
    mode = status.st_mode
    if not mode & (stat.S_IWGRP | stat.S_IWOTH) or mode & stat.S_ISVTX:
        return True
    return not mode & stat.S_IWOTH and _is_group_of_ours(status.st_gid)


def _is_group_of_ours(gid: int) -> bool:
    """Whether a group is the one that many systems give each user, with the user's name and nobody else in it."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_uid != 0 and gid == user.pw_gid and group.gr_name == user.pw_name and not group.gr_mem


def _is_folder_of_ours(status: os.stat_result) -> bool:
    """Whether it is a folder, and what is in it was put there by nobody else."""
    return stat.S_ISDIR(status.st_mode) and (not _HAS_OWNERS or _only_we_write(status))


def _is_ours_alone(status: os.stat_result) -> bool:
    """Whether nobody else can write a file, by this name or another. One that was just replaced has no name left."""
    return _only_we_write(status) and status.st_nlink <= 1


def _only_we_write(status: os.stat_result) -> bool:
    return status.st_uid in _trusted() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _trusted() -> set[int]:
    """The users whose files we take for our own."""
    return {os.getuid(), 0, os.stat("/").st_uid}


def _make_folders(folder: Path, permissions: int) -> None:
    """Make a folder and those above it; whatever the umask says, others can write in none of them."""
    if not folder.is_dir():
        if not folder.parent.is_dir():
            _make_folders(folder.parent, 0o755)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, permissions)


@contextlib.contextmanager
def _saying_why(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        say_once(
            f"edgellm cannot keep compiled kernels and measurements in {folder}, so every start makes them again: "
            f"{problem.strerror or problem}; EDGELLM_HOME can name another folder"
        )
