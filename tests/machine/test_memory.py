"""Memory, as the system counts it."""

from __future__ import annotations

import mmap
from pathlib import Path
from statistics import mean

import numpy as np

from edgellm.machine import mapped_at_once


def mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r")


def test_what_a_touch_maps(tmp_path: Path) -> None:
    """At least a page, and never more than there is between two places."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    found = mapped_at_once(mapped(path))
    assert len(found) == 128
    assert mmap.PAGESIZE // 2 <= mean(found) <= 1 << 20
    assert sum(found) <= 64 << 20


def test_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert all(size <= 1 << 20 for size in mapped_at_once(mapped(path)))
