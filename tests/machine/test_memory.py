"""Memory, as the system counts it."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from edgellm.machine import mapped_at_once
from edgellm.machine.memory import give_back_freed, resident


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps what was freed")
def test_what_was_freed_is_given_back() -> None:
    """Small pieces, of which the last one is still in use: none of them goes back by itself."""
    pieces = [b"x" * 60_000 for _ in range(1000)]  # written to, so that they are in memory
    last = b"x" * 60_000
    full = resident(Path("/"))
    del pieces
    give_back_freed()
    assert resident(Path("/")) < full - 40_000_000
    assert last


def test_other_systems_have_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    give_back_freed()
