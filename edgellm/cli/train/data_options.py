"""The options of commands that read training data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from edgellm.train.data.config import LEAST_LENGTH, LONG, TRAIN_ON, DataConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = [
    click.option("--data", "data", type=click.Path(), multiple=True, required=True, metavar="FILE",
                 help="Examples: JSONL, JSON, CSV, Parquet or plain text; may be given several times."),
    click.option("--max-length", type=click.IntRange(LEAST_LENGTH), default=DataConfig.max_length, show_default=True,
                 metavar="N", help="Most tokens of an example."),
    click.option("--long", type=click.Choice(LONG), default=DataConfig.long, show_default=True,
                 help="Cut longer examples, keeping their beginning, or leave them out."),
    click.option("--train-on", type=click.Choice(TRAIN_ON), default=DataConfig.train_on, show_default=True,
                 help="What is learnt of a chat: its answers, the last answer, or every token."),
    click.option("--skip-bad", is_flag=True, help="Go on at lines that cannot be used, and count them."),
    click.option("--template", metavar="FILE|NAME",
                 help="A chat template (Jinja), or a known one's name, in place of the model's own; none for plain "
                      "texts."),
]  # fmt: skip


def data_options(command: Command) -> Command:
    """Give a command --data, --template, and the options of DataConfig; it receives these as `config`."""
    names = {field.name for field in fields(DataConfig)}

    @functools.wraps(command)
    def with_config(**typed: Any) -> Any:
        config = DataConfig(**{name: typed.pop(name) for name in names & typed.keys()})
        return command(config=config, **typed)

    for option in reversed(_OPTIONS):
        with_config = option(with_config)
    return with_config  # type: ignore[return-value]
