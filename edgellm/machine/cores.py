"""Cores: which CPUs this process may use, how many cores these are, and how many of those are fast.

A CPU is what the system schedules threads on; a core with hyperthreading is two of them.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from edgellm.machine.sysctl import sysctl
from edgellm.machine.text import text_of

_FAST = 2 / 3  # of the fastest one's speed; those that makers call efficient have a half of it or less


def usable_cpus() -> set[int]:
    """The numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    if sys.platform == "win32":
        import psutil

        return set(psutil.Process().cpu_affinity())
    return set(range(os.cpu_count() or 1))


def fast_cores(root: Path) -> int:
    """How many cores this process may use, without those that are slow beside the others."""
    if sys.platform == "linux":
        return linux_cores(usable_cpus(), root)
    found = None
    if sys.platform == "darwin":
        found = apple_cores(sysctl)
    elif sys.platform == "win32":
        found = windows_cores(_windows_records())
    if found:
        return found
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def linux_cores(cpus: set[int], root: Path) -> int:
    """Of these CPUs, as /sys describes them."""
    folder = root / "sys/devices"
    speeds = _speeds(cpus, folder)
    fastest = max(speeds.values())
    fast = [cpu for cpu, speed in speeds.items() if speed >= _FAST * fastest]
    return len({text_of(folder / f"system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in fast})


def apple_cores(ask: Callable[[str], int | None]) -> int | None:
    """Level 0 is the fastest; None where all cores are alike, as in Macs of Intel."""
    return ask("hw.perflevel0.physicalcpu")


def windows_cores(records: bytes) -> int | None:
    """From SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX records, one for a core; None without any.

    The class of a core is the higher, the faster it is.
    """
    classes, at = [], 0
    while at + _CORE.size <= len(records):
        _, n_bytes, _, efficiency = _CORE.unpack_from(records, at)
        classes.append(efficiency)
        at += max(n_bytes, _CORE.size)
    return classes.count(max(classes)) if classes else None


_CORE = struct.Struct("<IIBB")  # kind of record, its bytes, flags, efficiency class


def _windows_records() -> bytes:
    if sys.platform != "win32":
        return b""
    ask = ctypes.WinDLL("kernel32").GetLogicalProcessorInformationEx
    n_bytes = ctypes.c_uint32()
    ask(0, None, ctypes.byref(n_bytes))  # 0: one record for every core
    records = ctypes.create_string_buffer(n_bytes.value)
    return records.raw[: n_bytes.value] if ask(0, records, ctypes.byref(n_bytes)) else b""


def _speeds(cpus: set[int], folder: Path) -> dict[int, float]:
    """How fast each CPU is, in whatever unit the system tells for all of them, or all the same."""
    if performance := text_of(folder / "cpu_core/cpus"):  # Intel's processors with two kinds of cores
        return {cpu: float(cpu in _numbers(performance)) for cpu in cpus}
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):  # ARM, and all others
        told = {cpu: text_of(folder / f"system/cpu/cpu{cpu}" / name) for cpu in cpus}
        if all(text.isdecimal() for text in told.values()):
            return {cpu: float(text) for cpu, text in told.items()}
    return dict.fromkeys(cpus, 1.0)


def _numbers(text: str) -> set[int]:
    """What a list such as 0-3,8 holds."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return found
