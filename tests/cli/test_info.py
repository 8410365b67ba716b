"""What `info --values` names is what a model can be asked for, and `--activations` reaches the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.cli import main
from edgellm.files import tile_files
from edgellm.hub import inventory, store
from edgellm.measure import limits
from tests.arch import tiny


def test_values_are_those_of_the_model(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_path), "--values"]) == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    with edgellm.load(tiny_path, n_threads=1) as model:
        assert [line.split()[:2] for line in lines] == [[name, str(width)] for name, width in model.values.items()]
        assert f"{len(model.values)} values" in first


def test_values_of_what_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.1.extra.weight"] = np.ones((4, 32), np.float32)
    path = checkpoint.save(tmp_path / "more.gguf")
    for arguments, words in (([str(path)], f"{path}: edgellm's llama has no place"), ([], "--values goes with a FILE")):
        assert main(["info", *arguments, "--values"]) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_activations_reach_the_model(tmp_path: Path) -> None:
    path = tiny.llama(hidden_size=64).save(tmp_path / "q8.gguf", "Q8_0")
    expected = {}
    for activations in ("int8", "f32"):
        with edgellm.load(path, n_threads=1, activations=activations) as model:
            expected[activations] = "".join(model.generate("the tea", temperature=1.0, seed=4, max_tokens=60))
    for activations, text in expected.items():
        arguments = ["run", str(path), "--raw", "-p", "the tea", "--temp", "1", "--seed", "4", "-n", "60", "-t", "1"]
        command = [sys.executable, "-m", "edgellm", *arguments, "--activations", activations]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
        assert found.stdout.split() == text.split()
    assert expected["int8"] != expected["f32"]


def test_tiles_of_a_model_are_told(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` and `list` say what they take, and `bench` what is used, as `--layout` asked for."""
    monkeypatch.setattr(tile_files, "folder", lambda: tmp_path / "tiles")
    monkeypatch.setattr(store, "models_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(inventory, "models_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(limits, "beyond_caches", lambda least: 1 << 23)  # how quick memory is, is not looked at here
    (tmp_path / "models").mkdir()
    path = tiny.llama(hidden_size=64).save(tmp_path / "models" / "mine.gguf", "Q8_0")

    def said(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    assert "tiles of it" not in said("info", str(path)) and "tiles" not in said("list")
    bench = ["bench", str(path), "-p", "4", "-n", "4", "-r", "1"]
    assert "tiles" not in said(*bench, "--layout", "file").splitlines()[0]
    assert ", from tiles" in said(*bench, "--layout", "tiles").splitlines()[0]
    (file,) = (tmp_path / "tiles").glob("*.tiles")
    assert str(file) in said("info", str(path))
    (line,) = (line for line in said("list").splitlines() if line.startswith("mine.gguf"))
    assert "tiles of it take" in line
