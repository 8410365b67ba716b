"""One run at a time in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm.errors import FileProblem
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.one_run import alone_in
from edgellm.train.run import train

BUSY = "another run is training in .*run; wait until it has ended, or choose another folder"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock on a folder")


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_there(model, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words to learn, and some more of them")
    folder, config = tmp_path / "run", TrainConfig(steps=1)
    with alone_in(folder), pytest.raises(FileProblem, match=BUSY):
        train(model, tmp_path / "text.txt", LoraConfig(rank=1), config, output=folder)
    train(model, tmp_path / "text.txt", LoraConfig(rank=1), config, output=folder)
    with alone_in(folder), pytest.raises(FileProblem, match=BUSY):
        train(model, tmp_path / "text.txt", LoraConfig(rank=1), config, output=folder, resume=True)


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    (tmp_path / "own").mkdir()
    with alone_in(tmp_path / "own"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
