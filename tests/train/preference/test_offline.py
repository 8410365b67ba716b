"""Learning from pairs and judged answers, on small models with the real engine; steps beside peft and torch."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import UsageError
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.data.encoder import Judged, Pair
from edgellm.train.documents import Documents
from edgellm.train.log import read_log
from edgellm.train.loop import Run
from edgellm.train.preference import reference as reference_module
from edgellm.train.preference.answers import AnswerBatches, in_passes, mismatched_answers
from edgellm.train.preference.config import DpoConfig, KtoConfig, OrpoConfig
from edgellm.train.preference.learner import AnswerLearner
from edgellm.train.preference.objective import OfJudged, OfPairs
from edgellm.train.preference.offline import Offline
from edgellm.train.preference.reference import reference_likelihoods
from edgellm.train.run import train_adapter
from tests.convert import checkpoints
from tests.train.test_lora import Reference, learner_of

STEP = 1e-4  # relative, of losses and gradients against torch in float32
QUICK = TrainConfig(steps=10, learning_rate=0.01, warmup=0, batch_size=4)


def answer(random: np.random.Generator, prompt: np.ndarray) -> Documents:
    ids = np.concatenate([prompt, random.integers(2, checkpoints.N_VOCAB, random.integers(2, 9))])
    return Documents.of(ids, np.arange(len(ids)) >= len(prompt))


def pairs(n: int = 6) -> list[Pair]:
    random = np.random.default_rng(1)
    prompts = [random.integers(2, checkpoints.N_VOCAB, random.integers(3, 12)) for _ in range(n)]
    return [Pair(answer(random, prompt), answer(random, prompt)) for prompt in prompts]


def judged(n: int = 6) -> list[Judged]:
    return [Judged(pair.chosen if i % 2 else pair.rejected, bool(i % 3)) for i, pair in enumerate(pairs(n))]


@pytest.fixture
def base(tmp_path: Path):
    """A model in transformers, and the same loaded in float32."""
    theirs = checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        yield theirs, model


def log_likelihoods(reference: Reference, texts: list[Documents]) -> torch.Tensor:
    return torch.stack([-reference.losses(text).sum() for text in texts])


def without_adapter(reference: Reference, texts: list[Documents]) -> torch.Tensor:
    with torch.no_grad(), reference.model.disable_adapter():
        return log_likelihoods(reference, texts)


def compare(learner, reference: Reference) -> None:
    for name, gradient in learner.gradients.items():
        given = reference.weight(name).grad.numpy()
        ours = reference.as_peft(name, gradient)
        np.testing.assert_allclose(ours, given, rtol=0, atol=STEP * np.abs(given).max(), err_msg=name)


@pytest.mark.parametrize("n_batch", [256, 50])
@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_a_step_with_pairs_is_that_of_peft(base, loss: str, n_batch: int) -> None:
    """In one pass or in several."""
    theirs, model = base
    data = pairs()
    sides = [[pair.chosen for pair in data], [pair.rejected for pair in data]]
    every = [text for pair in data for text in (pair.chosen, pair.rejected)]
    likelihoods = reference_likelihoods(model, every, n_batch, None, "").reshape(-1, 2)
    with closing(learner_of(model)) as lora:
        reference = Reference("llama", theirs, lora)
        policies = [log_likelihoods(reference, side) for side in sides]
        references = [without_adapter(reference, side) for side in sides]
        np.testing.assert_allclose(likelihoods.T, [side.numpy() for side in references], rtol=STEP)
        if loss == "dpo":
            objective = OfPairs.dpo(DpoConfig(beta=0.3), likelihoods)
            d = policies[0] - references[0] - (policies[1] - references[1])
            expected = -F.logsigmoid(0.3 * d).mean()
        else:
            objective = OfPairs.orpo(OrpoConfig(beta=0.3))
            means = [p / torch.tensor([t.n_targets for t in side]) for p, side in zip(policies, sides, strict=True)]
            odds = [mean - torch.log1p(-torch.exp(mean)) for mean in means]
            expected = (-means[0] - 0.3 * F.logsigmoid(odds[0] - odds[1])).mean()
        learner = AnswerLearner(lora, objective)
        passes = in_passes(data, range(len(data)), n_batch)
        assert len(passes) == (1 if n_batch == 256 else 4)
        losses = [learner.loss_and_gradients(some, 1 / len(data)) for some in passes]
        assert sum(losses) / len(data) == pytest.approx(expected.item(), rel=STEP)
        figures = learner.figures()
        if loss == "dpo":
            assert figures["margin"] == pytest.approx(0.3 * d.mean().item(), rel=1e-3)
            assert figures["accuracy"] == pytest.approx((d > 0).float().mean().item())
        expected.backward()
        compare(lora, reference)
        held = [learner.loss(some) for some in passes]
        assert sum(loss for loss, _ in held) == pytest.approx(sum(losses)) and sum(n for _, n in held) == len(data)


def test_a_step_with_judged_answers_is_that_of_peft(base) -> None:
    theirs, model = base
    data, config = judged(), KtoConfig(0.4, 1.3, 0.7)
    texts, mismatched = [example.documents for example in data], mismatched_answers(judged(), 256)
    likelihoods = reference_likelihoods(model, [*texts, *mismatched], 256, None, "")
    good = np.array([example.good for example in data])
    with closing(learner_of(model)) as lora:
        reference = Reference("llama", theirs, lora)
        r = log_likelihoods(reference, texts) - without_adapter(reference, texts)
        z = (
            (log_likelihoods(reference, mismatched) - without_adapter(reference, mismatched))
            .mean()
            .detach()
            .clamp(min=0)
        )
        losses = torch.where(torch.from_numpy(good), 1.3 * (1 - torch.sigmoid(0.4 * (r - z))),
                             0.7 * (1 - torch.sigmoid(0.4 * (z - r))))  # fmt: skip
        objective = OfJudged(config, good, likelihoods[:6], likelihoods[6:])
        learner = AnswerLearner(lora, objective)
        (batch,) = AnswerBatches(data, 6, TrainConfig(batch_size=6), 50, mismatched).epoch(0)
        assert len(batch) > 1 and batch[0].before and not batch[1].before
        found = [learner.loss_and_gradients(some, 1 / 6) for some in batch]
        assert sum(found) / 6 == pytest.approx(losses.mean().item(), rel=STEP)
        losses.mean().backward()
        compare(lora, reference)


def test_mismatched_answers_follow_the_prompts_of_others() -> None:
    data = judged(4)
    for n, text in enumerate(mismatched_answers(data, 256)):
        own, other = data[n].documents, data[n - 1].documents
        n_own, n_other = len(own) - own.n_targets, len(other) - other.n_targets
        assert text.ids.tolist() == [*own.ids[:n_own], *other.ids[n_other:]]
        assert text.n_targets == other.n_targets
    assert max(map(len, mismatched_answers(data, 12))) <= 12


# --- whole runs ---------------------------------------------------------------------------------------------


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Of two answers, the one in small letters is better."""
    words = ["yes", "no", "maybe", "never", "often", "here", "there", "now"]
    return write(tmp_path / "pairs.jsonl", [
        {"prompt": f"say {a} {b}", "chosen": f" {b} {a}", "rejected": f" {b} {a}".upper()}
        for a in words for b in words[:3]
    ])  # fmt: skip


@pytest.fixture
def verdicts(tmp_path: Path, preferences: Path) -> Path:
    records = map(json.loads, preferences.read_text().splitlines())
    return write(tmp_path / "judged.jsonl", [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in records for side in ("chosen", "rejected")
    ])  # fmt: skip


def run(model, data: Path, config, settings=QUICK, **more):
    return train_adapter(model, [data], LoraConfig(rank=4), settings, DataConfig(), task=Offline(config), **more)


@pytest.mark.parametrize(
    "config",
    [DpoConfig(), DpoConfig(loss_type="hinge"), DpoConfig(loss_type="ipo"), OrpoConfig()],
    ids=lambda config: getattr(config, "loss_type", "orpo"),
)
def test_the_margin_of_held_out_pairs_rises(model, preferences: Path, tmp_path: Path, config) -> None:
    settings = TrainConfig(steps=12, learning_rate=0.01, warmup=0, validation=6)
    steps = []
    run(model, preferences, config, settings, output=tmp_path / "run", callback=steps.append)
    before, after = steps[0], steps[-1]
    assert after.validation_loss < before.validation_loss
    assert after.figures["validation_margin"] > before.figures["validation_margin"]
    assert after.figures["validation_accuracy"] == 1
    if isinstance(config, DpoConfig):
        assert before.figures["validation_margin"] == pytest.approx(0, abs=1e-4)
    entries = read_log(tmp_path / "run" / "log.jsonl")
    assert entries[-1]["figures"]["margin"] == steps[-1].figures["margin"]
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_judged_answers_lower_their_loss(model, verdicts: Path) -> None:
    steps = []
    settings = TrainConfig(steps=12, learning_rate=0.01, warmup=0, validation=8)
    run(model, verdicts, KtoConfig(), settings, callback=steps.append)
    before, after = steps[0], steps[-1]
    assert before.validation_loss == pytest.approx(0.5, abs=0.01)
    assert after.validation_loss < before.validation_loss
    assert after.figures["validation_good_reward"] > after.figures["validation_bad_reward"]


@pytest.mark.parametrize("config", [DpoConfig(), KtoConfig()])
def test_a_stopped_run_ends_with_the_same_bits(model, preferences, verdicts, tmp_path, config, monkeypatch) -> None:
    data = verdicts if isinstance(config, KtoConfig) else preferences
    straight, _ = run(model, data, config, output=tmp_path / "straight")
    run(model, data, config, output=tmp_path / "stopped", callback=lambda step: step.step == 4)

    def never(*_):
        raise AssertionError("the reference is in the folder")

    monkeypatch.setattr(reference_module, "Reference", never)
    rest, _ = run(model, data, config, output=tmp_path / "stopped", resume=True)
    for name, change in straight.weights.items():
        assert change.a.tobytes() == rest.weights[name].a.tobytes()
        assert change.b.tobytes() == rest.weights[name].b.tobytes()


def test_a_kept_reference_of_other_data_is_not_used(model, preferences: Path, tmp_path: Path) -> None:
    texts = [pair.chosen for pair in pairs()]
    first = reference_likelihoods(model, texts, 256, tmp_path, "one")
    (tmp_path / reference_module.FILE).rename(tmp_path / "kept")
    whole = (tmp_path / "kept").read_bytes()
    digit = whole.rindex(b".") + 1
    changed = whole[:digit] + bytes([whole[digit] ^ 1]) + whole[digit + 1 :]
    for damage in (b"", b"[" * 100_000, b'{"of": "one"}', whole[:-40], changed):
        (tmp_path / reference_module.FILE).write_bytes(damage)
        np.testing.assert_array_equal(reference_likelihoods(model, texts, 256, tmp_path, "one"), first)
    other = reference_likelihoods(model, texts[::-1], 256, tmp_path, "one")
    np.testing.assert_array_equal(other, first[::-1])


def test_another_split_of_the_same_data_has_a_reference_of_its_own(model, preferences: Path, tmp_path: Path) -> None:
    """What a run that was killed early has left in the folder has the answers in another order."""
    for seed in (0, 1):
        steps = []
        config = TrainConfig(steps=1, validation=4, seed=seed)
        run(model, preferences, DpoConfig(), config, output=tmp_path / str(seed), callback=steps.append)
        assert steps[0].figures["validation_margin"] == 0  # nothing has changed yet
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "1" / reference_module.FILE).write_bytes((tmp_path / "0" / reference_module.FILE).read_bytes())


def test_other_settings_and_data_are_refused(model, preferences: Path, verdicts: Path, tmp_path: Path) -> None:
    run(model, preferences, DpoConfig(), output=tmp_path / "run", callback=lambda step: step.step == 2)
    with pytest.raises(UsageError, match=r"beta is 0\.5 and was 0\.1"):
        run(model, preferences, DpoConfig(beta=0.5), output=tmp_path / "run", resume=True)
    with pytest.raises(edgellm.errors.FormatError, match="expected chosen, rejected"):
        run(model, verdicts, DpoConfig())
    with pytest.raises(edgellm.errors.FormatError, match="expected prompt, completion, label"):
        run(model, preferences, KtoConfig())


def test_a_loss_that_is_no_number_ends_the_run(base) -> None:
    """And says at which step."""
    _, model = base
    data = pairs(2)
    with closing(learner_of(model)) as lora:
        learner = AnswerLearner(lora, OfPairs.dpo(DpoConfig(), np.full((2, 2), np.nan)))
        with pytest.raises(edgellm.errors.TrainingError, match="the loss became nan at step 1"):
            Run(learner, AnswerBatches(data, 2, QUICK, 256), QUICK).go()
