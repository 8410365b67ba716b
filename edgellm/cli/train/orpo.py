"""edgellm train orpo"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Training, training_options
from edgellm.train.preference.config import OFFLINE, OrpoConfig


@click.command("orpo")
@training_options("orpo", OrpoConfig, usual=OFFLINE, without=("train_on",))
def command(training: Training) -> None:
    """Teach a model to answer and to prefer at once (odds ratio preference optimization).

    An example has two answers: {"prompt": ..., "chosen": ..., "rejected": ...}. The chosen ones are learnt too.

    \b
      edgellm train orpo smollm2-135m --data pairs.jsonl -o better
    """
    from edgellm.train.preference.offline import Offline

    training.go(lambda made: Offline(made(OrpoConfig)))
