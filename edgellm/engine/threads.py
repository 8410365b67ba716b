"""How many threads are likely to be fastest here."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """One for every physical core that this process may use.

    A second thread on a core shares its arithmetic and its memory port: it helps nothing and costs turns at
    every op.
    """
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, usable_threads()))


def usable_threads() -> int:
    """As many threads as this process may run at the same time."""
    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, min(usable, _cgroup_limit()))


def _cgroup_limit() -> int:
    """Cores that a container may keep busy (cgroup v2), or many."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16
