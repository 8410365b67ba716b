"""Preferences and rewards teach every kind of small weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.preference.config import DpoConfig, GrpoConfig, PpoConfig, RewardConfig
from edgellm.train.run import train
from tests.train.preference.test_offline import preferences  # noqa: F401  # fixture
from tests.train.preference.test_online import GRPO, PPO, prompts, small_ids  # noqa: F401  # fixture

KINDS = [
    LoraConfig(method="dora", rank=4, dropout=0.1),
    LoraConfig(method="prompt", virtual_tokens=5, prompt_init="vocabulary"),
    LoraConfig(method="prefix", virtual_tokens=5, encoder_width=8),
    LoraConfig(method="adapter", bottleneck=4),
]


@pytest.mark.parametrize("lora", KINDS, ids=lambda lora: lora.method)
def test_preferences_are_learnt(model, preferences: Path, lora: LoraConfig) -> None:  # noqa: F811
    steps = []
    config = TrainConfig(steps=10, batch_size=4, learning_rate=1e-2)
    adapter = train(model, preferences, lora, config, how=DpoConfig(), callback=steps.append)
    assert adapter.method == lora.method
    assert np.mean([step.loss for step in steps[-3:]]) < steps[0].loss


@pytest.mark.parametrize("how", [GRPO, PPO], ids=["grpo", "ppo"])
@pytest.mark.parametrize("lora", KINDS, ids=lambda lora: lora.method)
def test_rewards_are_learnt_from(model, prompts: Path, lora: LoraConfig, how: GrpoConfig | PpoConfig) -> None:  # noqa: F811
    """The answers that are judged are those of the adapter as it is: what the trainer finds for them agrees."""
    seen = []

    def reward(completions, **others):
        seen.extend(completions)
        return small_ids(completions)

    config = TrainConfig(steps=3, batch_size=4, learning_rate=1e-2)
    steps = []
    adapter = train(model, prompts, lora, config, how=how, rewards=reward, callback=steps.append)
    assert adapter.method == lora.method and seen and all(np.isfinite(step.loss) for step in steps)


def test_a_reward_model_is_of_low_rank(model, preferences: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="method is 'prefix'; a reward model is trained with lora or dora"):
        train(model, preferences, LoraConfig(method="prefix"), TrainConfig(steps=1), how=RewardConfig())
