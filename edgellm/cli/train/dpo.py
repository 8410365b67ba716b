"""edgellm train dpo"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Training, training_options
from edgellm.train.preference.config import OFFLINE, DpoConfig


@click.command("dpo")
@training_options("dpo", DpoConfig, usual=OFFLINE, without=("train_on",))
def command(training: Training) -> None:
    """Teach a model which of two answers is better (direct preference optimization).

    An example has two answers, or two chats that begin alike: {"prompt": ..., "chosen": ..., "rejected": ...}.
    The model is held to what it says without the adapter.

    \b
      edgellm train dpo smollm2-135m --data pairs.jsonl --validation 0.1 -o better
      edgellm run smollm2-135m --lora better
    """
    from edgellm.train.preference.offline import Offline

    training.go(lambda made: Offline(made(DpoConfig)))
