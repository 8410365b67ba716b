"""From a config and a text to a model that can be trained."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import MemoryLimitError, UsageError
from edgellm.train.new import run
from edgellm.train.new.config import NewConfig
from edgellm.train.new.run import prepare

ORDINARY = (resources.files("edgellm.evaluate") / "ordinary.txt").read_text("utf-8")


@pytest.fixture
def config(tmp_path: Path) -> NewConfig:
    (tmp_path / "text.txt").write_text(ORDINARY, encoding="utf-8")
    return NewConfig.of(
        {"n_layers": 2, "n_embd": 64, "n_ctx": 16, "n_vocab": 300, "data": [str(tmp_path / "text.txt")]}
    )


def test_everything_is_prepared_and_the_same_again(config: NewConfig, tmp_path: Path) -> None:
    one, other = (prepare(config, tmp_path / "out.gguf") for _ in range(2))
    assert not (tmp_path / "out.gguf").exists()
    assert one.model.metadata["general.name"] == "out"
    assert one.model.weights["token_embd.weight"].shape == (300, 64)
    assert one.model.n_parameters == config.shape.n_parameters(300)
    assert all((x == other.model.weights[name]).all() for name, x in one.model.weights.items())
    assert np.array_equal(one.corpus.training.ids, other.corpus.training.ids)
    assert one.corpus.training.n_ctx == 16 and len(one.corpus.validation.ids) == round(0.05 * one.corpus.n_tokens)
    assert one.notes == []
    assert one.about()[0] == f"model: {one.model.n_parameters:,} weights, a vocabulary of 300 tokens"
    assert one.about()[1].startswith("text: 1 document, ")


def test_progress_tells_both_parts(config: NewConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    prepare(config, tmp_path / "out.gguf", lambda *now: seen.append(now))
    assert {what for _, _, what in seen} == {"learning tokens", "reading the text"}
    assert all(0 < done <= total for done, total, _ in seen)
    assert seen[-1][0] == seen[-1][1] == len(ORDINARY.encode())


def test_a_text_that_is_only_sampled_is_said(config: NewConfig, tmp_path: Path) -> None:
    config = replace(config, tokenizer=replace(config.tokenizer, sample_bytes=1000))
    (note,) = (line for line in prepare(config, tmp_path / "out.gguf").notes if "learnt from" in line)
    assert note.startswith("tokens were learnt from about 1.0 kB of the ")


def test_what_cannot_be_is_refused(config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a new model needs a text to learn from"):
        prepare(replace(config, data=()), tmp_path / "out.gguf")
    with pytest.raises(UsageError, match="is a file that is being read"):
        prepare(config, tmp_path / "text.txt")
    monkeypatch.setattr(run, "available_memory", lambda: 1_000_000)
    with pytest.raises(MemoryLimitError, match=r"a model of 1[0-9]{2},[0-9]{3} weights needs 2\.0 MB in training"):
        prepare(config, tmp_path / "out.gguf")
