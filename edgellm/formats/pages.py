"""Which pages of mapped files are in memory."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BETWEEN = 1 << 20  # bytes between two arrays that are released together


def release_pages(data: NDArray[np.uint8]) -> None:
    """Tell the system that some bytes of a mapped file are not needed soon; they are read again when they are.

    Where the system will not hear it, they stay.
    """
    place = _place(data)
    if place is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapping, begin = place
    first, last = -(-begin // mmap.PAGESIZE), (begin + data.nbytes) // mmap.PAGESIZE
    if first < last:
        with contextlib.suppress(OSError, ValueError):
            mapping.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def mapped_ranges(arrays: Iterable[NDArray[np.uint8]], most_between: int = MOST_BETWEEN) -> list[NDArray[np.uint8]]:
    """The ranges of mapped files that some arrays take: one for all that follow one another; none of other arrays.

    Up to `most_between` bytes between two arrays do not part them.
    """
    places = [(*place, array.nbytes) for array in arrays if (place := _place(array))]
    found: list[tuple[mmap.mmap, int, int]] = []
    for mapping, begin, n_bytes in sorted(places, key=lambda place: (id(place[0]), *place[1:])):
        end = begin + n_bytes
        if found and found[-1][0] is mapping and begin <= found[-1][2] + most_between:
            _, begin, before = found.pop()
            end = max(end, before)
        found.append((mapping, begin, end))
    return [np.frombuffer(mapping, np.uint8)[begin:end] for mapping, begin, end in found]


def _place(data: NDArray[np.uint8]) -> tuple[mmap.mmap, int] | None:
    """The mapped file that some bytes are a part of, and where in it they begin."""
    base: Any = data
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else base.base
    # What can be written to is memory without a file: released, it would be lost.
    if base is None or not memoryview(base).readonly:
        return None
    return base, data.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
