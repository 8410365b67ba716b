"""Memory, as the system counts it."""

from __future__ import annotations

import mmap
from pathlib import Path

from edgellm.machine import mapped_at_once


def test_what_a_touch_maps(tmp_path: Path) -> None:
    """At least a page, and never more than there is between two places."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    assert mmap.PAGESIZE // 2 <= mapped_at_once(path) <= 4 << 20


def test_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert mapped_at_once(path) <= 1 << 20
