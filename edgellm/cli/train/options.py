"""The options of a training run: one for each setting. What was not typed comes from a file, else it is as usual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

import click

from edgellm.cli.options import typed_name
from edgellm.errors import UsageError
from edgellm.params import ACTIVATIONS
from edgellm.train.config import METHODS, PRECISIONS, SCHEDULES, LoraConfig, TrainConfig
from edgellm.train.data.config import LONG, TRAIN_ON, DataConfig

Command = TypeVar("Command", bound=Callable[..., Any])

# Setting, type or choices, help; True for a type is a flag.
_LORA: list[tuple[str, Any, str]] = [
    ("method", METHODS, "The kind of small weights."),
    ("rank", int, "Of the weights beside each layer."),
    ("alpha", float, "They are multiplied by alpha / rank."),
    ("dropout", float, "Part of their inputs that is left out at random."),
    ("target_modules", str, "Layers to train, by name, with commas between."),
    ("use_rslora", True, "Multiply by alpha / sqrt(rank), for high ranks."),
]
_TRAIN: list[tuple[str, Any, str]] = [
    ("epochs", float, "How often all examples are seen."),
    ("steps", int, "Updates of the weights, in place of --epochs."),
    ("batch_size", int, "Examples of an update."),
    ("accumulate", int, "Take so many times as many for an update."),
    ("learning_rate", float, "The highest one."),
    ("schedule", SCHEDULES, "How it falls to 0, or does not."),
    ("warmup", float, "Steps until it is reached; below 1, their share of all."),
    ("weight_decay", float, "Of AdamW."),
    ("clip", float, "The greatest norm of the gradients; 0 is off."),
    ("seed", int, "The same seed gives the same weights."),
    ("eval_every", int, "Steps between two validations.  [default: an epoch]"),
    ("patience", int, "Stop after so many validations that are no better, and take the best weights."),
    ("checkpoint_every", int, "Steps between two checkpoints."),
    ("keep_checkpoints", int, "How many of the last to keep, beside the best."),
    ("precision", PRECISIONS, "mixed keeps values for the way back in 16 bits."),
    ("gradient_checkpointing", True, "Compute values once more on the way back: slower, in little memory."),
    ("activations", ACTIVATIONS, "int8 rounds what meets quantized weights; f32 rounds nothing.  [default: int8]"),
]
_DATA: list[tuple[str, Any, str]] = [
    ("max_length", int, "Most tokens of an example."),
    ("long", LONG, "Cut longer examples, or leave them out."),
    ("train_on", TRAIN_ON, "What is learnt of a chat: its answers, the last one, or every token."),
    ("skip_bad", True, "Go on at lines that cannot be used, and count them."),
]
_FLAGS = {
    "use_rslora": "--rslora/--no-rslora",
    "skip_bad": "--skip-bad/--no-skip-bad",
    "gradient_checkpointing": "--gradient-checkpointing/--no-gradient-checkpointing",
}
_TABLES = {LoraConfig: _LORA, TrainConfig: _TRAIN, DataConfig: _DATA}


def settings_options(*kinds: type, defaults: Mapping[str, Any] | None = None) -> Callable[[Command], Command]:
    """Give a command an option for each setting; it receives those that were typed, others as None.

    defaults:  those of the command, where they are not those of the settings.
    """

    def decorate(command: Command) -> Command:
        for kind in reversed(kinds):
            usual = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
            for name, of, text in reversed(_TABLES[kind]):
                default = (defaults or {}).get(name, usual[name].default)
                command = _option(kind, usual[name], of, text + _default(default))(command)
        return command

    return decorate


def typed_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by the names of settings."""
    return {name: value for name, value in typed.items() if value not in (None, ())}


def _option(kind: type, field: Field[Any], of: Any, text: str) -> Callable[[Command], Command]:
    words: dict[str, Any] = {"help": text, "default": None, "callback": checked(kind)}
    if of is True:
        return click.option(_FLAGS[field.name], field.name, **words)
    if isinstance(of, tuple):
        words["type"] = click.Choice(of)
    else:
        words |= {"type": of, "metavar": {int: "N", float: "X", str: "NAMES"}[of]}
    return click.option(f"--{field.name.replace('_', '-')}", field.name, **words)


def _default(value: Any) -> str:
    if value is None or value is False or value is MISSING:
        return ""
    return f"  [default: {value:g}]" if isinstance(value, float) else f"  [default: {value}]"


def checked(kind: type) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A check of an option's value by the settings that it belongs to, before any work begins."""

    def check(context: click.Context, option: click.Parameter, value: Any) -> Any:
        if value is not None and option.name is not None:
            try:
                kind(**{option.name: value})
            except UsageError as error:
                raise UsageError(str(error).replace(option.name, typed_name(option), 1)) from None
        return value

    return check
