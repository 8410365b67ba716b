"""edgellm train new: from a text to a file that runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import edgellm as package
from edgellm.cli import main

from ..conftest import beside_first_start

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(ORDINARY, encoding="utf-8")
    (tmp_path / "new.yaml").write_text("n_layers: 2\nn_embd: 64\nn_ctx: 64\nn_vocab: 300\n", encoding="utf-8")
    return ["--config", str(tmp_path / "new.yaml"), "--data", str(tmp_path / "text.txt")]


def test_a_new_model_runs_at_once(
    inputs: list[str], tmp_path: Path, edgellm: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.gguf"
    assert main(["train", "new", *inputs, "-o", str(out), "--untrained"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("edgellm: model: ") and lines[0].endswith("weights, a vocabulary of 300 tokens")
    assert lines[1].startswith("edgellm: text: 1 document, ")
    assert lines[-1].startswith(f"edgellm: wrote {out}, ")
    answer = edgellm("run", str(out), "--raw", "-p", "Once", "-n", "4", "--temp", "0", real=True)
    assert (answer.returncode, beside_first_start(answer.stderr)) == (0, "")
    with package.load(out) as loaded:
        assert answer.stdout.strip("\n") == "".join(loaded.generate("Once", max_tokens=4, temperature=0.0)).strip("\n")


def test_a_model_is_trained_and_stays_resumable(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.gguf"
    assert main(["train", "new", *inputs, "-o", str(out), "--steps", "2", "--batch-size", "2", "-t", "1"]) == 0
    shown = capsys.readouterr()
    assert "trained     2 of 2 steps" in shown.out and f"wrote       {out}, " in shown.out
    assert "edgellm: text: 1 document" in shown.err
    settings = (tmp_path / "new.training" / "train.yaml").read_text("utf-8")
    assert "steps: 2\n" in settings and "n_embd: 64\n" in settings and "learning_rate: 0.001\n" in settings
    assert main(["train", "new", *inputs, "-o", str(out), "--steps", "2"]) == 2
    assert "new.training holds a run that is at step 2" in capsys.readouterr().err
    before = out.read_bytes()
    assert main(["train", "new", *inputs, "-o", str(out), "--untrained"]) == 2
    assert "new.training holds a run that is at step 2" in capsys.readouterr().err
    assert main(["train", "new", "-o", str(out), "--untrained", "--resume"]) == 2
    assert "--resume goes on with training, and --untrained does not train" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["train", "new", "--resume", "-o", str(out)]) == 0
    (tmp_path / "new.training" / "train.yaml").unlink()
    capsys.readouterr()
    assert main(["train", "new", "--resume", "-o", str(out)]) == 2
    assert "train.yaml, which says what the run is, is not there; give its --config" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("n_layer: 2", "new.yaml, line 1: 'n_layer' is no setting; did you mean n_layers?"),
        ("n_vocab: 10", "n_vocab is 10; expected at least 257: all bytes and the control tokens"),
        ("validation: 100000", "leaves too few for training (validation is 100000); give a longer text"),
    ],
)
def test_what_cannot_be_leaves_nothing(
    text: str, line: str, inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.yaml").write_text(text, encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    assert main(["train", "new", *inputs, "-o", str(tmp_path / "new.gguf"), "--untrained"]) == 2
    assert line in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_read_is_not_written_over(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("new.yaml", "text.txt"):
        before = (tmp_path / name).read_bytes()
        assert main(["train", "new", *inputs, "-o", str(tmp_path / name), "--untrained"]) == 2
        assert "is a file that is being read" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before


def test_the_file_of_settings_is_not_written_over_by_those_in_effect(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new.training"
    folder.mkdir()
    config = (tmp_path / "new.yaml").rename(folder / "train.yaml")
    before = config.read_bytes()
    words = [str(config) if word == str(tmp_path / "new.yaml") else word for word in inputs]
    assert main(["train", "new", *words, "-o", str(tmp_path / "new.gguf")]) == 2
    assert f"--config {config} is where a run in {folder} writes" in capsys.readouterr().err
    assert config.read_bytes() == before
