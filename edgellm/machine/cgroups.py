"""The limits of containers: what the control groups (cgroups) of Linux leave to this process.

Groups form trees, and a process has one place in each. A limit holds for all that is below it, so the least one on
the way up counts. Version 2 has one tree for everything, version 1 has one for each controller, and a machine may
have both. See the kernel's admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1.

What cannot be read, as on other systems, is no limit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


def cpu_limit(root: Path) -> float | None:
    """Cores that may be kept busy, in fractions too; None for as many as there are."""
    limits = (group.cpus() for group in _groups("cpu", root))
    return min((limit for limit in limits if limit is not None), default=None)


def memory_limit(root: Path) -> int | None:
    """Bytes that may be in use; None for as many as there are."""
    limits = (group.memory() for group in _groups("memory", root))
    return min((limit for limit in limits if limit is not None), default=None)


def memory_room(root: Path) -> int | None:
    """Bytes that may be taken beside those in use; None for as many as there are."""
    limited = ((group, limit) for group in _groups("memory", root) if (limit := group.memory()) is not None)
    return min((max(0, limit - group.memory_in_use()) for group, limit in limited), default=None)


class _Group(NamedTuple):
    """A folder of the tree, whose files tell and set what a group may use."""

    folder: Path

    def cpus(self) -> float | None:
        raise NotImplementedError

    def memory(self) -> int | None:
        raise NotImplementedError

    def memory_in_use(self) -> int:
        raise NotImplementedError

    def _words(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return []

    def _number(self, name: str) -> int | None:
        """None for a word as well: "max" is no limit."""
        words = self._words(name)
        return _whole(words[0]) if words else None

    def _unused_cache(self, name: str) -> int:
        """Bytes of files that were read once. They count as in use, but go when memory is wanted."""
        words = self._words("memory.stat")
        return _whole(dict(zip(words[::2], words[1::2], strict=False)).get(name, "")) or 0


class _Version1(_Group):
    def cpus(self) -> float | None:
        return _share(self._number("cpu.cfs_quota_us"), self._number("cpu.cfs_period_us"))

    def memory(self) -> int | None:
        return self._number("memory.limit_in_bytes")

    def memory_in_use(self) -> int:
        return (self._number("memory.usage_in_bytes") or 0) - self._unused_cache("total_inactive_file")


class _Version2(_Group):
    def cpus(self) -> float | None:
        quota, period, *_ = [*self._words("cpu.max"), "", ""]
        return _share(_whole(quota), _whole(period))

    def memory(self) -> int | None:
        """Beyond memory.high nothing is refused, but everything becomes slow."""
        limits = (self._number("memory.max"), self._number("memory.high"))
        return min((limit for limit in limits if limit is not None), default=None)

    def memory_in_use(self) -> int:
        return (self._number("memory.current") or 0) - self._unused_cache("inactive_file")


@functools.cache  # a process stays where it was started; the limits there are read each time
def _groups(controller: str, root: Path) -> tuple[_Group, ...]:
    """The group of this process and all above it, in every tree that has the controller."""
    return tuple(_find_groups(controller, root))


def _find_groups(controller: str, root: Path) -> Iterator[_Group]:
    places = _own_places(root)
    for mount in _mounts(root):
        key = "" if mount.version is _Version2 else controller
        if key in places and key in mount.controllers:
            folder = root / mount.folder.relative_to("/")
            below = mount.below(places[key])
            yield from (mount.version(folder / part) for part in (below, *below.parents))


def _own_places(root: Path) -> dict[str, PurePosixPath]:
    """Where this process is in the tree of a controller of version 1, by its name, or of version 2, by ""."""
    places: dict[str, PurePosixPath] = {}
    for line in _lines(root / "proc/self/cgroup"):  # 4:cpu,cpuacct:/top/own, or 0::/top/own
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path:
            places |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    return places


class _Mount(NamedTuple):
    """Where (a part of) a tree can be seen: the group `top` is the folder `folder`."""

    version: type[_Group]
    controllers: list[str]
    top: PurePosixPath
    folder: PurePosixPath

    def below(self, place: PurePosixPath) -> PurePosixPath:
        """A group as seen from the folder; the folder itself for one that another namespace has named."""
        is_below = place.is_relative_to(self.top) and ".." not in place.parts
        return place.relative_to(self.top) if is_below else PurePosixPath()


def _mounts(root: Path) -> Iterator[_Mount]:
    """From lines such as `30 23 0:26 /top /folder rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct` (proc(5))."""
    for line in _lines(root / "proc/self/mountinfo"):
        first, _, last = line.partition(" - ")
        where, what = first.split(), last.split()
        if len(where) < 5 or len(what) < 3 or what[0] not in ("cgroup", "cgroup2"):
            continue
        top, folder = (PurePosixPath(_unescaped(path)) for path in where[3:5])
        if not folder.is_absolute():
            continue
        if what[0] == "cgroup2":
            yield _Mount(_Version2, [""], top, folder)
        else:
            yield _Mount(_Version1, what[2].split(","), top, folder)


def _unescaped(path: str) -> str:
    """Blanks and backslashes stand there as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _whole(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdecimal() else None


def _share(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None
