"""What macOS tells about the machine by name, without starting its `sysctl` program."""

from __future__ import annotations

import ctypes


def sysctl(name: str) -> int | None:
    """A whole number, or None where the system does not know the name (sysctlbyname(3))."""
    value = ctypes.c_int64(0)  # numbers of 32 bits fill the lower half
    size = ctypes.c_size_t(ctypes.sizeof(value))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, None)
    return None if failed else value.value
