"""Caches: how much of memory the CPU itself holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from edgellm.machine.sysctl import sysctl
from edgellm.machine.text import text_of

USUAL = 1 << 25  # bytes, where the system does not say
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level(root: Path) -> int:
    """Bytes of the largest cache that a core reads through."""
    found = None
    if sys.platform == "linux":
        found = linux_cache(root)
    elif sys.platform == "darwin":
        found = apple_cache(sysctl)
    return found or USUAL


def linux_cache(root: Path) -> int | None:
    """As /sys describes those of the first CPU, "32768K"; None where it does not."""
    paths = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = (re.fullmatch(r"(\d+)([KMG]?)", text_of(path)) for path in paths)
    return max((int(size[1]) * _UNITS[size[2]] for size in found if size), default=None)


def apple_cache(ask: Callable[[str], int | None]) -> int | None:
    """The third level of Macs with Intel's CPUs, and the second one of the fast cores of others."""
    return ask("hw.l3cachesize") or ask("hw.perflevel0.l2cachesize")
