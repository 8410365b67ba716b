"""A run and the folder where it leaves what it does."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgellm.errors import FileProblem, TrainingError, UsageError
from edgellm.train import session as module
from edgellm.train.config import TrainConfig
from edgellm.train.log import read_log
from edgellm.train.loop import Step
from edgellm.train.session import Session, Summary
from edgellm.train.settings import as_settings, read_settings, write_settings
from tests.train.bigram import Bigram, Counting

CONFIG = TrainConfig(learning_rate=0.05, epochs=3, checkpoint_every=5, warmup=0)
DIGESTS = {"data_digest": "ab"}


def train(folder: Path | None, watch=lambda step: None, config: TrainConfig = CONFIG, **more) -> tuple[Bigram, Summary]:
    learner = Bigram()
    settings = {"model": "a", "data": ["b"], **as_settings(config)}
    session = Session(folder, settings, more.pop("digests", DIGESTS), more.pop("resume", False), more.pop("tb", False))
    return learner, session.train(learner, Counting(), config, watch)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    _, summary = train(folder)
    assert {path.name for path in folder.iterdir()} == {"train.yaml", "log.jsonl", "loss.svg", "checkpoints"}
    assert read_settings(folder / "train.yaml", [TrainConfig])["checkpoint_every"] == 5
    entries = read_log(folder / "log.jsonl")
    assert [entry["step"] for entry in entries] == list(range(19))
    ET.parse(folder / "loss.svg")
    assert (summary.stopped, summary.step, summary.n_steps, summary.weights_of) == ("end", 18, 18, 18)
    assert summary.loss == pytest.approx(np.mean([entry["loss"] for entry in entries[1:]]))
    assert summary.validation_loss == min(entry["validation_loss"] for entry in entries if "validation_loss" in entry)
    assert summary.n_tokens == sum(entry.get("n_tokens", 0) for entry in entries)
    assert 0 < summary.train_seconds < summary.seconds
    assert summary.tokens_per_second == pytest.approx(summary.n_tokens / summary.train_seconds)
    assert summary.peak_memory > 1_000_000


def test_a_run_without_a_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(None)
    assert list(tmp_path.iterdir()) == []


def test_an_early_stop_without_a_folder_takes_the_best_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = TrainConfig(learning_rate=0.5, schedule="constant", epochs=200, patience=3, eval_every=2)
    kept: dict[int, float] = {}
    learner, summary = train(None, lambda step: kept.update({step.step: step.validation_loss}), config)
    losses = {step: loss for step, loss in kept.items() if loss is not None}
    assert summary.stopped == "early" and summary.weights_of == min(losses, key=lambda step: losses[step])
    sums = np.sum([learner.loss(documents) for documents in Counting().validation], axis=0)
    assert sums[0] / sums[1] == pytest.approx(summary.validation_loss)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_leaves_the_same(tmp_path: Path) -> None:
    train(tmp_path / "straight")
    train(tmp_path / "stopped", lambda step: step.step == 7)
    _, summary = train(tmp_path / "stopped", resume=True)
    timing = {"seconds", "seconds_left", "tokens_per_second", "memory"}
    straight, stopped = (
        [
            {name: value for name, value in entry.items() if name not in timing}
            for entry in read_log(folder / "log.jsonl")
        ]
        for folder in (tmp_path / "straight", tmp_path / "stopped")
    )
    assert straight == stopped
    assert summary.n_tokens == sum(entry["n_tokens"] for entry in straight[8:])
    _, again = train(tmp_path / "stopped", resume=True)  # of a run that is at its end
    assert (again.step, again.n_tokens, again.loss) == (18, 0, None)


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    train(tmp_path, lambda step: step.step == 7)
    config = TrainConfig(**as_settings(CONFIG) | {"checkpoint_every": 2, "keep_checkpoints": 1, "eval_every": 3})
    assert train(tmp_path, config=config, resume=True)[1].step == 18


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"config": TrainConfig(**as_settings(CONFIG) | {"seed": 1})}, "seed is 1 and was 0: a run goes on with"),
        ({"config": TrainConfig(**as_settings(CONFIG) | {"steps": 30})}, "steps is 30 and was None: "),
        ({"digests": {"data_digest": "xy"}}, "the data is another than at the beginning: "),
    ],
)
def test_a_resumed_run_with_other_settings_changes_nothing(tmp_path: Path, changes, text: str) -> None:
    train(tmp_path, lambda step: step.step == 7)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as error:
        train(tmp_path, resume=True, **changes)
    assert str(error.value).startswith(text)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_does_not_suit(tmp_path: Path) -> None:
    train(tmp_path / "run", lambda step: step.step == 7)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for folder, resume, text in (
        (tmp_path / "run", False, "holds a run that is at step 7; resume goes on with it, or choose another folder"),
        (tmp_path / "new", True, "does not exist, so there is no run to go on with; .*, or leave out resume to begin"),
        (tmp_path / "empty", True, "holds no checkpoint to go on from; leave out resume to begin"),
        (tmp_path / "file", False, "is a file; expected a folder for the result"),
        (None, True, "resume goes on in a folder"),
    ):
        with pytest.raises(UsageError, match=text):
            Session(folder, resume=resume).check()
    assert not (tmp_path / "new").exists()


def test_settings_that_a_person_wrote_are_not_written_over(tmp_path: Path) -> None:
    settings = tmp_path / "train.yaml"
    settings.write_text("rank: 2  # as small as it goes\n")
    with pytest.raises(UsageError, match=r"train\.yaml is there, and a new run would write its settings over that"):
        train(tmp_path)
    assert settings.read_text() == "rank: 2  # as small as it goes\n"
    write_settings(settings, {"rank": 2})  # of a run that ended before its first step
    train(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "log.jsonl"])
def test_a_result_without_checkpoints_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("kept")
    with pytest.raises(UsageError, match=rf"holds {name} and no checkpoint.*; choose another folder, or remove"):
        train(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "kept")]


def test_an_empty_log_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    assert train(tmp_path)[1].stopped == "end"


def test_a_run_that_fails_keeps_its_log_and_curve(tmp_path: Path) -> None:
    class Failing(Bigram):
        def loss_and_gradients(self, documents, scale: float) -> float:
            return super().loss_and_gradients(documents, scale) if len(self.places) < 20 else float("nan")

    with pytest.raises(TrainingError):
        Session(tmp_path, as_settings(CONFIG), DIGESTS).train(Failing(), Counting(), CONFIG)
    assert len(read_log(tmp_path / "log.jsonl")) > 5
    ET.parse(tmp_path / "loss.svg")


def test_a_log_on_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self, entry) -> None:
        raise FileProblem("log.jsonl cannot be written: No space left on device")

    monkeypatch.setattr(module.Log, "write", write)
    with pytest.raises(FileProblem, match="No space left"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("asked", "installed", "written"),
    [(True, False, True), (None, True, True), (None, False, False), (False, True, False)],
)
def test_when_event_files_are_written(tmp_path: Path, monkeypatch, asked, installed: bool, written: bool) -> None:
    monkeypatch.setattr(module, "is_installed", lambda: installed)
    train(tmp_path, tb=asked)
    assert len(list(tmp_path.glob("tensorboard/events.out.tfevents.*"))) == written


def test_energy_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        asked = 0

        def joules(self) -> float:
            Meter.asked += 1
            return 2.5 * Meter.asked

    monkeypatch.setattr(module, "EnergyMeter", Meter)
    assert train(None)[1].joules == 2.5 * Meter.asked and Meter.asked == 20  # each step, the first look, the end


def test_room_for_checkpoints_is_looked_for_before_the_first_step(tmp_path: Path, monkeypatch) -> None:
    one = 3 * sum(array.nbytes for array in Bigram().parameters.values())
    free = [0]
    monkeypatch.setattr("edgellm.files.shutil.disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    told: list[int] = []

    def watch(step: Step) -> bool:
        told.append(step.step)
        return step.step == 7

    for free[0] in (0, 3 * one - 1):  # two that are kept, and the next one
        with pytest.raises(FileProblem, match=r"checkpoints needs .*free; keep_checkpoints is 2, and a lower one"):
            train(tmp_path / "run", watch)
    assert not told and not list(tmp_path.rglob("step-*"))
    free[0] = 3 * one
    train(tmp_path / "run", watch)  # to step 7, with the checkpoints of steps 5 and 7
    free[0] = one - 1
    with pytest.raises(FileProblem, match=r"checkpoints needs .* free$"):
        train(tmp_path / "run", watch, resume=True)
    free[0] = one
    train(tmp_path / "run", resume=True)
    free[0] = 0
    train(tmp_path / "run", resume=True)  # it has ended already


def test_the_settings_of_a_run_are_its_own(tmp_path: Path) -> None:
    train(tmp_path)
    lines = (tmp_path / "train.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and lines[1:5] == ["model: a", "data: [b]", "epochs: 3.0", "steps: null"]
    state = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert state["step"] == 0
