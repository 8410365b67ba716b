"""edgellm train ppo"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Make, Training, training_options
from edgellm.train.preference.config import SAMPLED, PpoConfig, RewardSources


@click.command("ppo")
@training_options("ppo", RewardSources, PpoConfig, usual=SAMPLED, without=("train_on", "long"))
def command(training: Training) -> None:
    """Teach a model by rewards for its own answers (proximal policy optimization).

    As `edgellm train grpo`, with a value head in place of groups: it learns what is to be expected of an answer at each
    token, beside the adapter and without a gradient into it, and what turns out better becomes likelier.

    \b
      edgellm train ppo smollm2-135m --data prompts.jsonl --reward-model rewards -o better
    """
    from edgellm.train.preference.online import Online
    from edgellm.train.preference.rewards import rewards_from

    def task(made: Make) -> Online:
        sources = made(RewardSources)
        return Online(made(PpoConfig), rewards_from(sources), sources)

    training.layout = "auto"
    training.go(task)
