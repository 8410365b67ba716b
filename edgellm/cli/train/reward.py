"""edgellm train reward"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Training, training_options
from edgellm.train.preference.config import OFFLINE, RewardConfig


@click.command("reward")
@training_options("reward", RewardConfig, usual=OFFLINE, without=("train_on",))
def command(training: Training) -> None:
    """Teach a model to say how good an answer is (a reward model).

    An example has two answers: {"prompt": ..., "chosen": ..., "rejected": ...}, and maybe a "margin", by which the
    rewards of the two should differ. The result is no model to chat with: `edgellm train grpo` and `ppo` learn from it.

    \b
      edgellm train reward smollm2-135m --data pairs.jsonl --validation 0.1 -o rewards
      edgellm train grpo smollm2-135m --data prompts.jsonl --reward-model rewards -o better
    """
    from edgellm.train.preference.reward_learner import RewardTask

    training.go(lambda made: RewardTask(made(RewardConfig)))
