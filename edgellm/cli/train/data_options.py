"""The options of commands that read training data and do not train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgellm.cli.options import checked_by
from edgellm.train.data.config import LONG, TRAIN_ON, DataConfig

Command = TypeVar("Command", bound=Callable[..., Any])


def _setting(flag: str, text: str, **more: Any) -> Any:
    """An option of a setting: None where it was not typed, so that a file can say it."""
    name = flag.removeprefix("--").partition("/")[0].replace("-", "_")
    default = getattr(DataConfig, name)
    shown = "" if default is False else f"  [default: {default}]"
    return click.option(flag, name, default=None, callback=checked_by(DataConfig), help=text + shown, **more)


_OPTIONS = [
    click.option("--data", multiple=True, metavar="FILE",
                 help="Examples: JSONL, JSON, CSV, Parquet or plain text; may be given several times."),
    click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
                 help="Settings of a training in YAML, its model, data and template among them; what is typed comes "
                      "first."),
    _setting("--max-length", "Most tokens of an example.", type=int, metavar="N"),
    _setting("--long", "Cut longer examples, keeping their beginning, or leave them out.", type=click.Choice(LONG)),
    _setting("--train-on", "What is learnt of a chat: its answers, the last answer, or every token.",
             type=click.Choice(TRAIN_ON)),
    _setting("--skip-bad/--no-skip-bad", "Go on at lines that cannot be used, and count them."),
    click.option("--template", metavar="FILE|NAME",
                 help="A chat template (Jinja), or a known one's name, in place of the model's own; none for plain "
                      "texts."),
]  # fmt: skip


def data_options(command: Command) -> Command:
    """Give a command --data, --config, --template, and the options of DataConfig, which are None if not typed."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
