"""What this process may use of the machine: how many threads at a time, and how much memory.

That is often less than the machine has: a container has limits, a process may be pinned to some CPUs. `root` is where
the files of the kernel lie, / but for tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.machine import caches, cgroups, cores
from edgellm.machine.memory import memory, most_used, resident

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROOT = Path("/")

__all__ = [
    "available_memory",
    "beyond_caches",
    "default_threads",
    "last_level_cache",
    "mapped_at_once",
    "peak_memory",
    "resident_memory",
    "total_memory",
    "usable_threads",
]

_PLACES = 128  # of mapped memory, which are read to see what the system maps
_BEYOND = 2  # times the last level: of less, caches that do not forget what is oldest still hold a part


def default_threads(root: Path = ROOT) -> int:
    """One for every core that this process may use; where cores differ, for every fast one.

    A second thread on a core shares its arithmetic and its memory port: it helps nothing and costs turns at
    every op. A slow core makes the fast ones wait at the end of every op.
    """
    return min(cores.fast_cores(root), usable_threads(root))


def usable_threads(root: Path = ROOT) -> int:
    """As many threads as this process may run at the same time.

    A quota of 2.5 cores is two: of three threads, all would be stopped together for a part of every period.
    """
    limit = cgroups.cpu_limit(root)
    usable = len(cores.usable_cpus())
    return usable if limit is None else max(1, min(usable, int(limit)))


def last_level_cache(root: Path = ROOT) -> int:
    """Bytes of the largest cache: what is read again and is no more may come from there."""
    return caches.last_level(root)


def beyond_caches(least: int, root: Path = ROOT) -> int:
    """Bytes that must be read for each of them to come from memory: at most a quarter of what is free.

    least:  so many do on most machines; servers may have a last level of 300 MB.
    """
    return min(max(least, _BEYOND * last_level_cache(root)), available_memory(root) // 4)


def total_memory(root: Path = ROOT) -> int:
    """Bytes that this process could have at most."""
    limit = cgroups.memory_limit(root)
    total = memory(root).total
    return total if limit is None else min(total, limit)


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process can take now without pushing others out."""
    room = cgroups.memory_room(root)
    available = memory(root).available
    return available if room is None else min(available, room)


def peak_memory(root: Path = ROOT) -> int:
    """The most bytes of memory that this process has had at a time."""
    return most_used(root)


def mapped_at_once(memory: NDArray[np.uint8]) -> tuple[int, ...]:
    """Bytes that come into a process's memory where one of a mapped file is read, at some places of a part of it.

    Linux maps what is near and in its cache already: 64 kB, and megabytes where that cache has large pages, as it may
    have in one part of a file and not in another.
    """
    found, before = [], resident_memory()
    for place in range(0, len(memory), -(-len(memory) // _PLACES)):
        memory[place].item()
        now = resident_memory()
        found.append(max(0, now - before))
        before = now
    return tuple(found)


def resident_memory(root: Path = ROOT) -> int:
    """The bytes of memory that this process has now."""
    return resident(root)
