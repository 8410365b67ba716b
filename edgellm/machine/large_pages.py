"""Memory of a process's own, on large pages where the system has some.

A page has 4 KB as a rule, and a core remembers where some thousands of them are (in its TLB, the translation lookaside
buffer). To look up where another one is can take as long as to read it. A large page has 2 MB.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

LARGE_PAGE = 1 << 21
LINE = 64  # bytes of a cache line


def on_large_pages(n_bytes: int) -> NDArray[np.uint8]:
    """uint8 [n_bytes]: zeros, which the system makes as they are first touched, on a cache line at least.

    Raises MemoryError.
    """
    if n_bytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return _from_boundary(np.zeros(n_bytes + LINE, np.uint8), LINE, n_bytes)
    try:
        mapping = mmap.mmap(-1, n_bytes + LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"there are no {n_bytes} bytes") from None
    with contextlib.suppress(OSError, ValueError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return _from_boundary(np.frombuffer(mapping, np.uint8), LARGE_PAGE, n_bytes)


def _from_boundary(memory: NDArray[np.uint8], n: int, n_bytes: int) -> NDArray[np.uint8]:
    """So many bytes of it, from a multiple of n on."""
    start = -memory.ctypes.data % n
    return memory[start : start + n_bytes]
