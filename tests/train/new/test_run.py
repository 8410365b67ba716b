"""From a config and a text to a model that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import edgellm
from edgellm.errors import MemoryLimitError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.train.documents import Documents
from edgellm.train.loop import Step
from edgellm.train.new import run
from edgellm.train.new.config import NewConfig, RouterSettings
from edgellm.train.new.corpus import WindowBatches
from edgellm.train.new.run import prepare, train_new, windows_at_once
from edgellm.train.schedule import learning_rate

from .llama import as_transformers

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


def test_widths_that_cannot_be_quantized_are_said(config: NewConfig, tmp_path: Path) -> None:
    config = replace(config, shape=replace(config.shape, n_embd=48, n_ff=100))
    assert [note.split(",")[0] for note in prepare(config, tmp_path / "out.gguf").notes] == [
        "n_embd is 48",
        "n_ff is 100",
    ]


def test_what_cannot_be_is_refused(config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a new model needs a text to learn from"):
        prepare(replace(config, data=()), tmp_path / "out.gguf")
    with pytest.raises(UsageError, match="is a file that is being read"):
        prepare(config, tmp_path / "text.txt")
    monkeypatch.setattr(run, "available_memory", lambda: 1_000_000)
    with pytest.raises(MemoryLimitError, match=r"a model of 1[0-9]{2},[0-9]{3} weights needs 2\.0 MB in training"):
        prepare(config, tmp_path / "out.gguf")


def test_what_a_token_meets_is_said(config: NewConfig, tmp_path: Path) -> None:
    shape = NewConfig.of({"n_layers": 2, "n_embd": 64, "n_ctx": 16, "n_experts": 4, "n_expert_ff": 33}).shape
    prepared = prepare(replace(config, shape=shape), tmp_path / "out.gguf")
    n, active = shape.n_parameters(300), shape.n_active_parameters(300)
    assert prepared.about()[0].startswith(f"model: {n:,} weights, {active:,} of them for each token (2 of 4 experts), ")
    assert [note.split(",")[0] for note in prepared.notes] == ["n_expert_ff is 33"]


SMALL = {"n_layers": 1, "n_embd": 32, "n_ctx": 16, "tokenizer": "bytes", "validation": 4, "batch_size": 8,
         "learning_rate": 0.02, "checkpoint_every": 2, "eval_every": 100}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> NewConfig:
    (tmp_path / "abc.txt").write_text("abcdefg, " * 200, encoding="utf-8")
    return NewConfig.of(SMALL | {"steps": 6, "data": [str(tmp_path / "abc.txt")]})


def test_what_is_learnt_is_in_the_file(small: NewConfig, tmp_path: Path) -> None:
    small = replace(small, training=replace(small.training, steps=60))
    steps: list[Step] = []
    summary = train_new(small, tmp_path / "abc.gguf", folder=tmp_path / "run", callback=steps.append)
    assert steps[0].validation_loss == pytest.approx(np.log(257), abs=0.1)  # it knows nothing yet
    assert summary.step == 60 and summary.validation_loss is not None and summary.validation_loss < 0.4
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"train.yaml", "log.jsonl", "loss.svg"}
    assert NewConfig.read(tmp_path / "run" / "train.yaml") == small
    with edgellm.load(tmp_path / "abc.gguf", n_threads=1) as model:
        assert "".join(model.generate("abcd", max_tokens=12, temperature=0.0)) == "efg, abcdefg"


EXPERTS = {"n_experts": 6, "n_experts_used": 2, "n_expert_ff": 32}


@pytest.mark.parametrize(("experts", "coefficient"), [({}, None), (EXPERTS, 0.0), (EXPERTS, 0.5)])
def test_steps_are_those_of_torch(
    experts: dict[str, int], coefficient: float | None, config: NewConfig, tmp_path: Path
) -> None:
    """The same text, windows, first weights and settings, in float32: the same losses, update after update."""
    training = replace(config.training, steps=10, batch_size=8, learning_rate=3e-3, warmup=2, validation=0.2)
    shape = NewConfig.of({"n_layers": 2, "n_embd": 64, "n_ctx": 16, **experts}).shape
    config = replace(config, training=training, shape=shape, router=RouterSettings(coefficient))
    prepared = prepare(config, tmp_path / "out.gguf")
    theirs = as_transformers(prepared.model, config.shape)
    optimizer = torch.optim.AdamW(
        theirs.parameters(), betas=training.betas, eps=training.epsilon, weight_decay=training.weight_decay
    )
    batches = WindowBatches(prepared.corpus, 8, windows_at_once(16), training.seed)
    expected, expected_aux = [], []
    for step, batch in zip(range(10), batches.epoch(0), strict=False):
        losses, n = loss_of(theirs, batch), sum(map(len, batch))
        aux = balance_of(theirs, batch) if experts else torch.zeros(())
        (losses / n + (coefficient or 0) * aux / n).backward()
        expected_aux.append(aux.item() / n)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), training.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(training, step, 10)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(losses.item() / n)
    with torch.no_grad():
        held = loss_of(theirs, batches.validation).item() / sum(map(len, batches.validation))

    steps: list[Step] = []
    summary = train_new(config, tmp_path / "out.gguf", callback=steps.append)
    ours = [step.loss for step in steps if step.loss is not None]
    assert ours == pytest.approx(expected, abs=2e-5)
    assert summary.validation_loss == pytest.approx(held, abs=2e-5)
    assert ours[-1] < ours[0] - 0.2
    if experts:  # a token whose experts are nearly as good as others may have those
        found = [step.figures["router_aux_loss"] for step in steps if step.loss is not None]
        assert found == pytest.approx(expected_aux, abs=2e-3)
        assert all(step.figures["idlest_expert"] <= 1 <= step.figures["busiest_expert"] for step in steps if step.loss)


def balance_of(model: MixtralForCausalLM, batch: Sequence[Documents]) -> torch.Tensor:
    """The loss of each layer's router in each pass by transformers; the mean of layers, times the pass's tokens."""
    total = torch.zeros(())
    for documents in batch:
        parts = [
            model(torch.from_numpy(part.ids[None]).long(), output_router_logits=True).router_logits
            for part in documents.apart()
        ]
        layers = [torch.cat(of_layer) for of_layer in zip(*parts, strict=True)]
        kinds = model.config.num_local_experts, model.config.num_experts_per_tok
        found = [load_balancing_loss_func((logits,), *kinds) for logits in layers]
        total = total + torch.stack(found).mean() * len(documents)
    return total


def loss_of(model: LlamaForCausalLM, batch: Sequence[Documents]) -> torch.Tensor:
    """The sum of the losses of all targets by transformers."""
    parts = [part for documents in batch for part in documents.apart()]
    sums = [
        torch.nn.functional.cross_entropy(
            model(torch.from_numpy(part.ids[None]).long()).logits[0], torch.from_numpy(part.targets).long(),
            reduction="sum",
        )
        for part in parts
    ]  # fmt: skip
    return torch.stack(sums).sum()


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(small: NewConfig, tmp_path: Path) -> None:
    def stop(step: Step) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    train_new(small, tmp_path / "whole.gguf", folder=tmp_path / "whole")
    target, folder = tmp_path / "parts.gguf", tmp_path / "parts"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        train_new(small, target, folder=folder, callback=stop)
    assert target.read_bytes() == b"old"
    with pytest.raises(UsageError, match="resume"):
        train_new(small, target, folder=folder)
    other = replace(small, shape=replace(small.shape, n_ff=64))
    with pytest.raises(UsageError, match="n_ff"):
        train_new(other, target, folder=folder, resume=True)
    train_new(small, target, folder=folder, resume=True)
    assert _weights(target) == _weights(tmp_path / "whole.gguf")


def _weights(path: Path) -> dict[str, bytes]:
    with GGUFFile(path) as file:
        return {name: tensor.raw.tobytes() for name, tensor in file.tensors.items()}
