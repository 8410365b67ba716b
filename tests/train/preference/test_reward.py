"""Reward models: their loss and gradients beside peft's, their files, and what they say of texts."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

import edgellm
from edgellm.arch.adapters import read_adapter, save_adapter
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import EdgellmError, UsageError
from edgellm.train.config import FullConfig, LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.preference.answers import in_passes
from edgellm.train.preference.config import RewardConfig
from edgellm.train.preference.final_norm import FinalNorm
from edgellm.train.preference.reward_learner import RewardLearner, RewardTask
from edgellm.train.preference.reward_model import RewardModel
from edgellm.train.run import train_adapter
from tests.convert import checkpoints
from tests.train.preference.test_offline import STEP, pairs, preferences, run  # noqa: F401  # fixtures
from tests.train.test_lora import Reference, learner_of

FAMILIES = ["llama", "qwen2", "gemma3"]


def test_the_last_norm_and_its_derivative(model) -> None:
    norm = FinalNorm.of(model)
    random = np.random.default_rng(1)
    x = random.normal(0, 3, (5, len(norm.weight))).astype(np.float32)
    dy = random.normal(0, 1, x.shape)
    t = torch.from_numpy(x).double().requires_grad_()
    y = torch.nn.functional.rms_norm(t, x.shape[1:], torch.from_numpy(norm.weight), norm.epsilon)
    (y * torch.from_numpy(dy)).sum().backward()
    np.testing.assert_allclose(norm(x), y.detach(), rtol=1e-10)
    np.testing.assert_allclose(norm.backward(x, dy), t.grad, rtol=1e-9, atol=1e-12)


def classifier(folder: Path) -> torch.nn.Module:
    found = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    found.config.pad_token_id = None
    return found


class Scored(Reference):
    """The same model, adapter and head in peft."""

    def __init__(self, family: str, folder: Path, learner) -> None:
        super().__init__(family, classifier(folder), learner)
        self.head = self.model.base_model.model.score
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(np.random.default_rng(3).normal(0, 0.3, self.head.weight.shape)))
        self.head.weight.requires_grad_(True)

    def reward(self, ids: np.ndarray) -> torch.Tensor:
        return self.model(torch.from_numpy(ids).long()[None]).logits[0, 0]


@pytest.mark.parametrize("config", [RewardConfig(), RewardConfig(margin=0.7, center_rewards=0.02)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_peft(family: str, config: RewardConfig, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    data = pairs()
    with (
        edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model,
        closing(learner_of(model)) as lora,
    ):
        reference, names = Scored(family, tmp_path / "model", lora), list(lora.parameters)
        learner = RewardLearner(lora, np.full(len(data), config.margin), config)
        learner.parameters["score.weight"][...] = reference.head.weight.detach().numpy()
        c, r = (torch.stack([reference.reward(getattr(p, side).ids) for p in data]) for side in ("chosen", "rejected"))
        expected = (-F.logsigmoid(c - r - config.margin) + config.center_rewards * (c + r) ** 2).mean()
        expected.backward()
        passes = in_passes(data, range(len(data)), 60)
        assert len(passes) > 1
        losses = [learner.loss_and_gradients(some, 1 / len(data)) for some in passes]
        assert sum(losses) / len(data) == pytest.approx(expected.item(), rel=STEP)
        assert learner.figures()["margin"] == pytest.approx((c - r).mean().item(), rel=1e-3)
        assert sum(learner.loss(some)[0] for some in passes) == pytest.approx(sum(losses))
        given = reference.head.weight.grad.numpy()
        np.testing.assert_allclose(learner.gradients["score.weight"], given, rtol=0, atol=STEP * np.abs(given).max())
        for name in names:
            given = reference.weight(name).grad.numpy()
            ours = reference.as_peft(name, learner.gradients[name])
            np.testing.assert_allclose(ours, given, rtol=0, atol=STEP * np.abs(given).max(), err_msg=name)

        # And the folder: peft reads it, and both say the same of texts.
        save_adapter(tmp_path / "rewards", learner.adapter(), model.metadata)
        ids = [pair.chosen.ids for pair in data]
        expected_rewards = [reference.reward(x).item() for x in ids]
        read = peft.PeftModel.from_pretrained(classifier(tmp_path / "model"), tmp_path / "rewards").eval()
        with torch.no_grad():
            theirs = [read(torch.from_numpy(x).long()[None]).logits[0, 0].item() for x in ids]
        np.testing.assert_allclose(theirs, expected_rewards, rtol=STEP, atol=STEP)
        with closing(RewardModel(model, tmp_path / "rewards")) as reward:
            np.testing.assert_allclose(reward.of_tokens(ids), expected_rewards, rtol=1e-3, atol=STEP)


def test_what_is_learnt_of_pairs_holds_for_others(model, preferences: Path, tmp_path: Path) -> None:  # noqa: F811
    steps = []
    settings = TrainConfig(steps=15, learning_rate=0.01, warmup=0, validation=6)
    adapter, _ = train_adapter(
        model, [preferences], LoraConfig(rank=4), settings, DataConfig(), task=RewardTask(RewardConfig()),
        output=tmp_path / "rewards", callback=steps.append,
    )  # fmt: skip
    assert steps[-1].validation_loss < steps[0].validation_loss
    assert steps[-1].figures["validation_accuracy"] == 1
    written = json.loads((tmp_path / "rewards" / "adapter_config.json").read_text())
    assert written["task_type"] == "SEQ_CLS" and written["modules_to_save"] == ["score"]
    with closing(RewardModel(model, tmp_path / "rewards")) as reward, closing(RewardModel(model, adapter)) as same:
        found = reward(["say often here here often", "say often here HERE OFTEN"])
        assert found.dtype == np.float32 and found[0] > found[1]
        np.testing.assert_array_equal(same(["say often here here often", "say often here HERE OFTEN"]), found)
        assert reward([]).shape == (0,)
        np.testing.assert_allclose(reward(["a " * 150, "b"])[1], reward(["b"])[0], rtol=1e-6)


def test_a_margin_of_a_pair_counts_before_that_of_the_settings(tmp_path: Path) -> None:
    task = RewardTask(RewardConfig(margin=0.5))
    data = pairs(2)
    np.testing.assert_array_equal(task._margins([replace(data[0], margin=2.0), data[1]]), [2, 0.5])


def test_a_reward_model_writes_no_texts(model, preferences: Path, tmp_path: Path) -> None:  # noqa: F811
    train_adapter(
        model, [preferences], LoraConfig(rank=2), TrainConfig(steps=1), DataConfig(),
        task=RewardTask(RewardConfig()), output=tmp_path / "rewards",
    )  # fmt: skip
    with pytest.raises(UsageError, match="is a reward model: it says how good a text is, and cannot be loaded"):
        model.load_adapter(tmp_path / "rewards")
    with pytest.raises(UsageError, match="cannot be merged"):
        edgellm.merge_adapters(model.path, tmp_path / "rewards", tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()
    assert read_adapter(tmp_path / "rewards", model.metadata, model._runner.tensors).score.shape == (1, 64)


def test_a_reward_model_is_an_adapter(model, preferences: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="lora is a FullConfig; a reward model is trained with a LoraConfig"):
        edgellm.train(model, preferences, FullConfig(), TrainConfig(steps=1), how=RewardConfig())


def test_what_is_no_reward_model(model, preferences: Path, tmp_path: Path) -> None:  # noqa: F811
    plain, _ = train_adapter(model, [preferences], LoraConfig(rank=2), TrainConfig(steps=1), DataConfig(),
                             task=RewardTask(RewardConfig()))  # fmt: skip
    for adapter, text in (
        (replace(plain, score=None), "has no head of rewards"),
        (replace(plain, score=np.ones((1, 8), np.float32)), "reads hidden states of 8 numbers, and this model has 64"),
        (replace(plain, score=np.ones((2, 64), np.float32)), r"has the shape \[2, 64\]; expected \[1, n_embd\]"),
        (replace(plain, score=np.full((1, 64), np.nan, np.float32)), "holds NaN"),
        (tmp_path / "nowhere", "does not exist"),
        (5, "adapter is 5"),
    ):
        with pytest.raises(EdgellmError, match=text):
            RewardModel(model, adapter)
    with closing(RewardModel(model, plain)) as reward:
        for texts in ("a text", [5], [[]], [b"x"], {"a": 1}):
            with pytest.raises(UsageError, match="texts"):
                reward(texts)
        with pytest.raises(EdgellmError, match=r"texts\[1\] has \d+ tokens and the context holds"):
            reward(["a", "b " * 5000])
