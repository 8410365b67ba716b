"""A lock beside a file: one process at a time, whichever home it has, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgellm.files.locking import alone_at

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there the lock file may stay")

COUNT = """
import os, sys
from pathlib import Path
from edgellm.files.locking import alone_at
path = Path(sys.argv[1])
for _ in range(100):
    with alone_at(path, lambda: None):
        found = int(path.read_text())
        path.with_suffix(".new").write_text(str(found + 1))
        os.replace(path.with_suffix(".new"), path)
"""


def test_nobody_writes_what_another_looks_at(tmp_path: Path) -> None:
    path = tmp_path / "n"
    path.write_text("0")
    homes = [dict(os.environ, EDGELLM_HOME=str(tmp_path / str(n))) for n in range(3)]
    running = [subprocess.Popen([sys.executable, "-c", COUNT, path], env=home) for home in homes]
    assert [process.wait(600) for process in running] == [0, 0, 0]
    assert path.read_text() == "300"
    assert os.listdir(tmp_path) == ["n"]


def test_who_waits_is_told_once_and_goes_on(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def second() -> None:
        with alone_at(tmp_path / "a", waiting.set):
            order.append("second")

    with alone_at(tmp_path / "a", lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and os.listdir(tmp_path) == []


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").touch()
    with alone_at(tmp_path / "a", lambda: pytest.fail("nobody holds it")):
        pass
    assert os.listdir(tmp_path) == []


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").symlink_to(tmp_path / "treasure")
    with pytest.raises(OSError), alone_at(tmp_path / "a", lambda: None):
        pass
    assert not (tmp_path / "treasure").exists()
