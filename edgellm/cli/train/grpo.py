"""edgellm train grpo"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Make, Training, training_options
from edgellm.train.preference.config import SAMPLED, GrpoConfig, RewardSources


@click.command("grpo")
@training_options("grpo", RewardSources, GrpoConfig, usual=SAMPLED, without=("train_on", "long"))
def command(training: Training) -> None:
    r"""Teach a model by rewards for its own answers (group relative policy optimization).

    Each prompt is answered several times, and answers that are better than the others of their group become likelier.
    An example is a prompt: {"prompt": ...}; a reward function is given its other keys too. The model is held to what
    it says without the adapter. Look at the answers in DIR/answers: what is rewarded is what is learnt.

    \b
      edgellm train grpo smollm2-135m --data prompts.jsonl --reward rules.py:short -o brief
      edgellm train grpo smollm2-135m --data sums.jsonl --reward-regex '= \d+$' -o sums
    """
    from edgellm.train.preference.online import Online
    from edgellm.train.preference.rewards import rewards_from

    def task(made: Make) -> Online:
        sources = made(RewardSources)
        return Online(made(GrpoConfig), rewards_from(sources), sources)

    training.layout = "auto"
    training.go(task)
