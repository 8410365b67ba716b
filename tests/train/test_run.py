"""From a model and files of examples to an adapter, on a small model with the real engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.log import read_log
from edgellm.train.run import train
from edgellm.train.settings import made, read_settings

QUICK = TrainConfig(steps=8, learning_rate=0.01, checkpoint_every=3, warmup=0, validation=0.2)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    lines = [{"prompt": f"what is {n}?", "completion": f" it is {7 * n}."} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bits(adapter) -> dict[str, tuple[bytes, bytes]]:
    return {name: (change.a.tobytes(), change.b.tobytes()) for name, change in adapter.weights.items()}


def test_an_adapter_is_trained_and_kept_in_a_folder(model, facts: Path, tmp_path: Path) -> None:
    steps = []
    adapter = train(model, facts, LoraConfig(rank=4), QUICK, output=tmp_path / "run", callback=steps.append)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"adapter_model.safetensors", "adapter_config.json", "train.yaml", "log.jsonl", "loss.svg"}
    losses = [step.loss for step in steps if step.loss is not None]
    assert len(losses) == 8 and losses[-1] < 0.7 * losses[0]
    assert steps[-1].validation_loss < 0.7 * steps[0].validation_loss
    for change in adapter.weights.values():
        assert change.rank == 4 and change.scale == 4.0 and np.abs(change.b).max() > 0
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 16, "LORA")


def test_the_front_door(model, facts: Path) -> None:
    from edgellm.train.config import TrainConfig as Own  # whatever has been imported before

    steps = []
    config = edgellm.TrainConfig(steps=2)
    adapter = edgellm.train(model, facts, edgellm.LoraConfig(rank=2), config, callback=steps.append)
    assert Own is edgellm.TrainConfig and len(steps) == 2
    assert {change.rank for change in adapter.weights.values()} == {2}
    with pytest.raises(UsageError, match=r"model is 'smollm2-135m'; expected a loaded model; edgellm\.load gives one"):
        edgellm.train("smollm2-135m", facts)


def test_patience_needs_something_to_validate_with(model, facts: Path) -> None:
    config = TrainConfig(steps=1, patience=2, eval_every=1)
    with pytest.raises(UsageError, match="eval_every is 1, and there are no examples to validate with"):
        train(model, facts, LoraConfig(rank=1), config)
    train(model, facts, LoraConfig(rank=1), config, validation_data=facts)


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix"])
def test_virtual_tokens_leave_room_for_a_text(model, facts: Path, method: str) -> None:
    n_ctx = model.config.n_ctx_train
    with pytest.raises(
        UsageError, match=rf"virtual_tokens is {n_ctx - 1}, and the context of this model holds {n_ctx}"
    ):
        train(model, facts, LoraConfig(method=method, virtual_tokens=n_ctx - 1), TrainConfig(steps=1))


def test_a_rank_beyond_every_matrix(model, facts: Path) -> None:
    with pytest.raises(UsageError, match=r"rank is 1024, and no matrix that is trained beside has more than \d+; exp"):
        train(model, facts, LoraConfig(rank=1024), TrainConfig(steps=1))


def test_epochs_that_never_end(model, facts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"epochs is 1e\+08, which is .* steps with this data"):
        train(model, facts, LoraConfig(rank=1), TrainConfig(epochs=1e8, batch_size=1), output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_settings_of_another_type(model, facts: Path) -> None:
    for more, text in (
        ({"lora": {"rank": 2}}, r"lora is \{'rank': 2\}; expected a LoraConfig or a FullConfig"),
        ({"lora": {}}, r"lora is \{\}; expected a LoraConfig or a FullConfig"),
        ({"config": {"steps": 2}}, r"config is \{'steps': 2\}; expected a TrainConfig"),
        ({"examples": LoraConfig()}, r"examples is LoraConfig\(.*; expected a DataConfig"),
    ):
        with pytest.raises(UsageError, match=text):
            train(model, facts, **more)


METHODS = [
    LoraConfig(),
    LoraConfig(dropout=0.2),
    LoraConfig(method="dora"),
    LoraConfig(method="dora", dropout=0.2),
    LoraConfig(method="prompt", virtual_tokens=9, prompt_init="vocabulary"),
    LoraConfig(method="p-tuning", virtual_tokens=9),
    LoraConfig(method="prefix", virtual_tokens=9, prompt_init="zero"),
    LoraConfig(method="prefix", virtual_tokens=9, encoder_width=16),
    LoraConfig(method="adapter", bottleneck=8, bottleneck_at="both"),
]


@pytest.mark.parametrize("lora", METHODS, ids=lambda lora: lora.method)
def test_what_is_saved_is_what_was_learnt(model, facts: Path, tmp_path: Path, lora: LoraConfig) -> None:
    """The loss falls, and the adapter of the folder gives the logits of the one in memory."""
    steps = []
    method, dropout = lora.method, lora.dropout
    config = TrainConfig(steps=12, learning_rate=3e-3 if "dora" in method or method == "lora" else 2e-2)
    adapter = train(model, facts, lora, config, output=tmp_path / "out", callback=steps.append)
    assert min(step.loss for step in steps[-4:]) < 0.97 * steps[0].loss
    ids = model.tokenize("what is 5?")
    before = model.logits(ids)
    found = []
    for source, name in ((adapter, "memory"), (tmp_path / "out", "file")):
        model.load_adapter(source, name)
        model.set_adapters(name)
        found.append(model.logits(ids))
        model.unload(name)
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0] - before).max() > 1e-3
    assert adapter.method == method and adapter.dropout == dropout
    settings = read_settings(tmp_path / "out" / "train.yaml", [LoraConfig, TrainConfig, DataConfig])
    assert made(LoraConfig, settings) == lora


def test_the_model_is_as_before(model, facts: Path) -> None:
    ids = model.tokenize("what is 5?")
    before = model.logits(ids)
    train(model, facts, config=QUICK)
    np.testing.assert_array_equal(model.logits(ids), before)


def test_the_same_run_has_the_same_bits_stopped_or_not(model, facts: Path, tmp_path: Path) -> None:
    straight = train(model, [facts], config=QUICK, output=tmp_path / "straight")
    train(model, [facts], config=QUICK, output=tmp_path / "stopped", callback=lambda step: step.step == 5)
    rest = train(model, [facts], config=QUICK, output=tmp_path / "stopped", resume=True)
    assert bits(straight) == bits(rest)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("straight", "stopped")]
    assert weights[0] == weights[1]
    numbers = [[(e["step"], e.get("loss"), e.get("validation_loss")) for e in read_log(tmp_path / name / "log.jsonl")]
               for name in ("straight", "stopped")]  # fmt: skip
    assert numbers[0] == numbers[1]


def test_gathered_batches_are_larger_batches(model, facts: Path) -> None:
    one = train(model, facts, config=TrainConfig(steps=2, batch_size=8, learning_rate=0.01, warmup=0))
    two = train(model, facts, config=TrainConfig(steps=2, batch_size=4, accumulate=2, learning_rate=0.01, warmup=0))
    assert bits(one) == bits(two)


def test_a_file_to_validate_with(model, facts: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "what is 99?", "completion": " it is 693."}\n')
    seen = []
    train(model, facts, config=TrainConfig(steps=2), validation_data=held, callback=seen.append)
    assert seen[0].step == 0 and seen[0].validation_loss > 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lora": LoraConfig(rank=8)}, "rank is 8 and was 4"),
        ({"config": TrainConfig(steps=8, seed=3)}, "learning_rate is 0.0001 and was 0.01"),
        ({"examples": DataConfig(max_length=50)}, "max_length is 50 and was 1024"),
        ({"more": '{"prompt": "a", "completion": "b"}\n'}, "the data is another than at the beginning"),
    ],
)
def test_a_resumed_run_with_other_settings(model, facts: Path, tmp_path: Path, changes, text: str) -> None:
    settings = {"lora": LoraConfig(rank=4), "config": QUICK, "output": tmp_path / "run"}
    train(model, facts, **settings, callback=lambda step: step.step == 2)
    facts.write_text(facts.read_text() + changes.pop("more", ""))
    with pytest.raises(UsageError) as error:
        train(model, facts, **settings | changes, resume=True)
    assert str(error.value).startswith(text)


def test_a_resumed_run_with_another_model(model, facts: Path, tmp_path: Path) -> None:
    from tests.arch import tiny

    train(model, facts, config=QUICK, output=tmp_path / "run", callback=lambda step: step.step == 2)
    other = tiny.llama(rms_norm_eps=1e-4).save(tmp_path / "other.gguf")
    with edgellm.load(other, n_threads=1) as loaded, pytest.raises(UsageError, match="the model is another than at"):
        train(loaded, facts, config=QUICK, output=tmp_path / "run", resume=True)


def test_a_result_that_cannot_be_written_is_told_and_written_later(model, facts: Path, tmp_path: Path) -> None:
    result = tmp_path / "run" / "adapter_model.safetensors"
    result.mkdir(parents=True)
    with pytest.raises(FileProblem, match=r"adapter_model\.safetensors cannot be written: .*; resume writes it again"):
        train(model, facts, config=QUICK, output=tmp_path / "run")
    result.rmdir()
    train(model, facts, config=QUICK, output=tmp_path / "run", resume=True)
    assert result.is_file()


def test_bad_input_is_one_error_and_leaves_nothing(model, facts: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    for arguments, kind, words in (
        ({"data": bad}, FormatError, "bad.jsonl, line 2"),
        ({"data": tmp_path / "none.jsonl"}, OSError, "none.jsonl"),
        ({"data": []}, UsageError, "data is empty"),
        ({"data": facts, "config": TrainConfig(validation=20)}, UsageError, "validation takes 20 of 20 examples"),
        ({"data": facts, "lora": LoraConfig(target_modules="q_prj")}, UsageError, "q_prj"),
        (
            {"data": facts, "lora": LoraConfig(target_modules=("q_proj", "lm_head"))},
            UsageError,
            "'lm_head', and beside embeddings and the head nothing is trained",
        ),
        ({"data": 5}, UsageError, "data is 5; expected the path of a file of examples, or a list of such paths"),
        ({"data": {"a": 1}}, UsageError, "data is {'a': 1}; expected the path of a file"),
        ({"data": facts, "validation_data": None}, UsageError, "validation_data is None; expected the path"),
        ({"data": facts, "template": 5}, UsageError, "template is 5; expected a text or a path"),
        ({"data": facts, "callback": 5}, UsageError, "callback is 5; expected a function"),
        ({"data": facts, "resume": "yes"}, UsageError, "resume is 'yes'; expected True or False"),
        ({"data": facts, "tensorboard": "yes"}, UsageError, "tensorboard is 'yes'; expected True or False"),
        ({"data": facts, "config": TrainConfig(activations="f32")}, UsageError, "activations is 'f32', and the model"),
    ):
        with pytest.raises(kind) as error:
            train(model, **{"output": tmp_path / "run"} | arguments)
        assert words in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
    assert model.logits(model.tokenize("a")).shape[0] > 0  # it was given back
