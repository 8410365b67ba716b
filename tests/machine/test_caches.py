"""The size of the largest cache, as systems tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import machine
from edgellm.machine import caches, last_level_cache


@pytest.mark.parametrize(
    ("sizes", "found"),
    [(["48K", "32K", "1024K", "32768K"], 32 << 20), (["64K", "8M"], 8 << 20), (["512", "1G"], 1 << 30),
     (["many", "", "2M"], 2 << 20), (["?"], None), ([], None)],
)  # fmt: skip
def test_linux(tmp_path: Path, sizes: list[str], found: int | None) -> None:
    for index, size in enumerate(sizes):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert caches.linux_cache(tmp_path) == found


def test_macs() -> None:
    assert caches.apple_cache({"hw.l3cachesize": 9 << 20, "hw.perflevel0.l2cachesize": 1}.get) == 9 << 20
    assert caches.apple_cache({"hw.perflevel0.l2cachesize": 12 << 20}.get) == 12 << 20
    assert caches.apple_cache({}.get) is None


def test_some_size_is_found_everywhere(tmp_path: Path) -> None:
    assert last_level_cache() >= 1 << 15
    assert caches.last_level(tmp_path) >= 1 << 15


def test_what_no_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as asked for, more beside a large cache, and never much of what is free."""
    free = 100 << 30
    monkeypatch.setattr(machine, "available_memory", lambda root: free)
    for cache, least, found in ((32 << 20, 1 << 27, 1 << 27), (320 << 20, 1 << 27, 640 << 20)):
        monkeypatch.setattr(machine, "last_level_cache", lambda root, cache=cache: cache)
        assert machine.beyond_caches(least) == found
    free = 1 << 30
    assert machine.beyond_caches(1 << 27) == 1 << 28
