"""The memory of the machine, whatever this process may have of it."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes. available: what can be taken without pushing others out."""

    total: int
    available: int


def memory(root: Path) -> Memory:
    """As the kernel tells it: on Linux in a file (proc_meminfo(5)), elsewhere by way of psutil.

    Every start asks, and importing psutil takes longer than opening a model.
    """
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        text = ""
    kibibytes = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB$", text, re.MULTILINE))
    if len(kibibytes) == 2:
        return Memory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))
    import psutil

    found = psutil.virtual_memory()
    return Memory(found.total, found.available)


def most_used(root: Path) -> int:
    """The most bytes of memory that this process has had at a time; what it has now where that is not told.

    Pages of mapped files count while they are in memory.
    """
    try:
        text = (root / "proc/self/status").read_text()
    except OSError:
        text = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return 1024 * int(found[1])
    import psutil

    told = psutil.Process().memory_info()
    return int(getattr(told, "peak_wset", told.rss))


def give_back_freed() -> None:
    """Let the system have what was freed, which glibc keeps for later (malloc_trim(3))."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl, which keeps little
            ctypes.CDLL(None).malloc_trim(0)


def resident(root: Path) -> int:
    """The bytes of memory that this process has now, pages of mapped files among them."""
    try:
        text = (root / "proc/self/status").read_text()
    except OSError:
        text = ""
    if found := re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE):
        return 1024 * int(found[1])
    import psutil

    return int(psutil.Process().memory_info().rss)
