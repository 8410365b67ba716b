"""edgellm train kto"""

from __future__ import annotations

import click

from edgellm.cli.train.training import Training, training_options
from edgellm.train.preference.config import OFFLINE, KtoConfig


@click.command("kto")
@training_options("kto", KtoConfig, usual=OFFLINE, without=("train_on",))
def command(training: Training) -> None:
    """Teach a model from answers that are good or not, without pairs (Kahneman-Tversky optimization).

    An example is an answer and a verdict: {"prompt": ..., "completion": ..., "label": true}. Where there are more of
    one verdict, weigh the other: the weights times the numbers should be alike.

    \b
      edgellm train kto smollm2-135m --data judged.jsonl -o better
    """
    from edgellm.train.preference.offline import Offline

    training.go(lambda made: Offline(made(KtoConfig)))
