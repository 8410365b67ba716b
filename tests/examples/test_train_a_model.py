"""The example that trains a model from nothing, in its short form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "train_a_model.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_whole_way_from_texts_to_a_chat(tmp_path: Path) -> None:
    done = run(tmp_path / "new", "--quick")
    assert done.returncode == 0, done.stderr
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ edgellm")]
    assert commands == ["train", "quantize", "train", "train", "train", "merge", "run"]
    judged = ["The model before it is taught more", "With the names", "With both adapters", "The merged model"]
    assert [line.strip(" :") for line in done.stdout.splitlines() if line.strip(" :") in judged] == judged
    for run_folder in ("world.training", "names", "manner"):
        log = (tmp_path / "new" / run_folder / "log.jsonl").read_text("utf-8")
        losses = [step["loss"] for step in map(json.loads, log.splitlines()) if step.get("loss") is not None]
        assert sum(losses[-3:]) < 0.98 * sum(losses[:3]), run_folder
    assert (tmp_path / "new" / "taught.gguf").stat().st_size < 0.3 * (tmp_path / "new" / "world.gguf").stat().st_size


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 2 and "is not empty; name another folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
