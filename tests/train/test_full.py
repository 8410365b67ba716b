"""Training of all weights: a model file that has learnt, tied or not, and what stays frozen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgellm
from edgellm.cli.app import main
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.convert.quantize import foreseen_bytes, quantize_file
from edgellm.errors import MemoryLimitError, UsageError, size_text
from edgellm.formats.gguf import GGUFFile
from edgellm.train.config import FullConfig, TrainConfig
from edgellm.train.documents import Documents
from edgellm.train.full import FullLearner
from edgellm.train.run import train
from tests.convert import checkpoints

QUICK = TrainConfig(steps=6, learning_rate=0.003, warmup=0)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    lines = [{"prompt": f"what is {n}?", "completion": f" it is {7 * n}."} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(params=["llama", "llama, tied"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    checkpoints.save(request.param, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def loss_of(path: Path, facts: Path) -> float:
    with edgellm.load(path, n_threads=1, kv_type="f32", activations="f32") as model:
        learner = FullLearner(model)
        try:
            ids = model.tokenize(facts.read_text())[:200]
            return learner.loss(Documents.of(ids, np.ones(len(ids), bool)))[0]
        finally:
            learner.close()


def test_a_model_file_that_has_learnt(path: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    words = ["train", "full", path, "--data", facts, "-o", out, "--steps", 6, "--learning-rate", 0.003]
    assert main([str(word) for word in [*words, "--activations", "f32", "-t", 1]]) == 0
    assert (tmp_path / "out.training" / "loss.svg").is_file()
    with GGUFFile.open(path) as before, GGUFFile.open(out) as after:
        assert before.tensors.keys() == after.tensors.keys()
        changed = [n for n, t in before.tensors.items() if not np.array_equal(t.raw, after.tensors[n].raw)]
        assert set(changed) == set(before.tensors)
    assert loss_of(out, facts) < loss_of(path, facts)


def test_what_is_read_is_not_written_over(path: Path, facts: Path, tmp_path: Path, capsys) -> None:
    held, config, template = tmp_path / "held.jsonl", tmp_path / "my.yaml", tmp_path / "plain.jinja"
    held.write_bytes(facts.read_bytes())
    config.write_text("steps: 1\n")
    template.write_text("{{ messages[-1].content }}")
    words = ["train", "full", path, "--data", facts, "--validation", held, "--config", config, "--template", template]
    for out in (path, facts, held, config, template):
        before = out.read_bytes()
        assert main([*map(str, words), "-o", str(out)]) == 2
        assert f"error: {out} is a file that is being read; choose another name" in capsys.readouterr().err
        assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.training"))


def test_room_for_the_result_is_looked_for_first(path: Path, facts: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("edgellm.files.shutil.disk_usage", lambda folder: SimpleNamespace(free=100_000))
    monkeypatch.setattr("edgellm.train.run.train_adapter", lambda *_, **__: pytest.fail("it is trained"))
    out = tmp_path / "out.gguf"
    assert main(["train", "full", str(path), "--data", str(facts), "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"error: {re.escape(str(out))} needs \d+\.\d [kM]B, and the disk of .* has 100\.0 kB free", error)


@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_room_for_a_result_of_another_type_is_looked_for_too(
    path: Path, facts: Path, tmp_path: Path, monkeypatch, capsys, kind: str
) -> None:
    """What it would take is foreseen; the type may stand in a file of settings as well."""
    needed = foreseen_bytes(path, kind)
    assert 0 < foreseen_bytes(path, "Q8_0") < foreseen_bytes(path, "F32")
    monkeypatch.setattr("edgellm.files.shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    monkeypatch.setattr("edgellm.train.run.train_adapter", lambda *_, **__: pytest.fail("it is trained"))
    (tmp_path / "own.yaml").write_text(f"type: {kind.lower()}\n")
    out = tmp_path / "out.gguf"
    for more in (["--type", kind], ["--config", str(tmp_path / "own.yaml")]):
        assert main(["train", "full", str(path), "--data", str(facts), "-o", str(out), *more]) == 1
        assert f"error: {out} needs {size_text(needed)}, and the disk of" in capsys.readouterr().err


def test_a_type_that_nobody_knows(path: Path, facts: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.gguf"
    assert main(["train", "full", str(path), "--data", str(facts), "-o", str(out), "--type", "Q9"]) == 2
    assert "error: --type is 'Q9'; expected one of F32, F16," in capsys.readouterr().err


def test_what_is_foreseen_is_what_is_written(path: Path, tmp_path: Path) -> None:
    done = quantize_file(path, tmp_path / "q.gguf", "Q8_0")
    assert 0 <= done.n_bytes - foreseen_bytes(path, "Q8_0") < 20_000  # metadata


def test_memory_is_looked_for_first(path: Path, facts: Path, monkeypatch) -> None:
    monkeypatch.setattr("edgellm.train.full.available_memory", lambda: 1000)
    monkeypatch.setattr("edgellm.train.run.read_dataset", lambda *_, **__: pytest.fail("data is read"))
    with (
        edgellm.load(path, n_threads=1) as model,
        pytest.raises(MemoryLimitError, match=r"training all weights of model.gguf needs .*, and .* are free"),
    ):
        train(model, facts, FullConfig(), QUICK)


def test_what_is_frozen_stays(path: Path, facts: Path) -> None:
    with edgellm.load(path, n_threads=1, activations="f32") as model:
        adapter = train(model, facts, FullConfig(freeze=("token_embd", "blk.1")), QUICK)
        assert not [name for name in adapter.replaced if name.startswith(("token_embd", "blk.1."))]
        assert "blk.0.attn_q.weight" in adapter.replaced
        with pytest.raises(UsageError, match=r"freeze names 'blk\.9', and no tensor's name is that or begins with it"):
            train(model, facts, FullConfig(freeze="blk.9"), QUICK)
        with pytest.raises(UsageError, match="freeze leaves nothing to train"):
            train(model, facts, FullConfig(freeze=tuple(name.split(".")[0] for name in model._runner.tensors)), QUICK)


def test_the_result_is_of_use_at_once(path: Path, facts: Path) -> None:
    """In the same process as an adapter in memory, and the model's file is what it was."""
    ids = list(range(2, 40))
    with edgellm.load(path, n_threads=1, kv_type="f32", activations="f32") as model:
        before = model.logits(ids)
        adapter = train(model, facts, FullConfig(), QUICK)
        np.testing.assert_array_equal(model.logits(ids), before)
        model.set_adapters([model.load_adapter(adapter, name="learnt")])
        after = model.logits(ids)
        assert np.abs(after - before).max() > 0.05
        model.set_adapters(None)
        np.testing.assert_array_equal(model.logits(ids), before)
