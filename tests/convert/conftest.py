from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def as_windows_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is renamed, nor another put in its place, while this process has it mapped: Windows would refuse."""
    if sys.platform != "linux":
        return
    usual = os.replace

    def replace(source: Path, target: Path) -> None:
        mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text("utf-8").splitlines()}
        assert not mapped & {os.path.realpath(source), os.path.realpath(target)}
        usual(source, target)

    monkeypatch.setattr(os, "replace", replace)
