"""The options of a training run: one for each setting. What was not typed comes from a file, else it is as usual."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import click

from edgellm.cli.options import checked_by
from edgellm.params import ACTIVATIONS
from edgellm.train.config import (
    BOTTLENECK_ACTIVATIONS,
    BOTTLENECK_PLACES,
    METHODS,
    PRECISIONS,
    PROMPT_INITS,
    SCHEDULES,
    FullConfig,
    LoraConfig,
    MachineConfig,
    TrainConfig,
)
from edgellm.train.data.config import LONG, TRAIN_ON, DataConfig
from edgellm.train.preference.config import (
    DPO_LOSSES,
    GRPO_LOSSES,
    DpoConfig,
    GrpoConfig,
    KtoConfig,
    OrpoConfig,
    PpoConfig,
    RewardConfig,
    RewardSources,
)

Command = TypeVar("Command", bound=Callable[..., Any])

TEXT = object()
# Setting, type or choices, help; True for a type is a flag, TEXT a text, str names with commas between.
_LORA: list[tuple[str, Any, str]] = [
    ("method", METHODS, "The kind of small weights."),
    ("rank", int, "Of the weights beside each layer."),
    ("alpha", float, "They are multiplied by alpha / rank."),
    ("dropout", float, "Part of their inputs that is left out at random."),
    ("target_modules", str, "Layers to train, by name, with commas between."),
    ("use_rslora", True, "Multiply by alpha / sqrt(rank), for high ranks."),
    ("virtual_tokens", int, "Learnt tokens before a text, of prompt, p-tuning and prefix."),
    ("prompt_init", PROMPT_INITS, "What these begin with; zero is for prefix, vocabulary and text for prompt."),
    ("prompt_text", TEXT, "The text of --prompt-init text."),
    ("encoder_width", int, "Of the network that makes them in training; prefix has one where this is given."),
    ("bottleneck", int, "How narrow the networks of adapter are."),
    ("bottleneck_at", BOTTLENECK_PLACES, "Behind which halves of layers they stand."),
    ("bottleneck_activation", BOTTLENECK_ACTIVATIONS, "The function in the middle of them."),
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
_BETA = "How closely the model is held to itself without the adapter."
_DPO: list[tuple[str, Any, str]] = [
    ("beta", float, _BETA),
    ("label_smoothing", float, "Part of the pairs that may be the other way round."),
    ("loss_type", DPO_LOSSES, "DPO's own loss, or that of SLiC or IPO."),
]
_KTO: list[tuple[str, Any, str]] = [
    ("beta", float, _BETA),
    ("desirable_weight", float, "Of answers that are good."),
    ("undesirable_weight", float, "Of answers that are not."),
]
_ORPO: list[tuple[str, Any, str]] = [("beta", float, "How much preferring counts beside answering.")]
_REWARD: list[tuple[str, Any, str]] = [
    ("margin", float, "By how much rewards should differ, where a pair does not say it."),
    ("center_rewards", float, "How strongly rewards are held around 0."),
]
_SAMPLING: list[tuple[str, Any, str]] = [
    ("num_generations", int, "Answers to each prompt."),
    ("max_new_tokens", int, "Of an answer."),
    ("num_iterations", int, "Updates of the weights from the same answers."),
    ("clip_ratio", float, "A token counts no more where its probability has changed by more than this share."),
    ("beta", float, _BETA),
]
_GRPO: list[tuple[str, Any, str]] = [
    *_SAMPLING,
    ("loss_type", GRPO_LOSSES, "How losses of tokens are averaged."),
    ("scale_rewards", True, "Divide advantages by the standard deviation of their group."),
]
_PPO: list[tuple[str, Any, str]] = [
    *_SAMPLING,
    ("gamma", float, "What a reward counts a token earlier."),
    ("lam", float, "Of advantages (GAE): 1 goes by rewards, 0 by values."),
    ("clip_value", float, "As --clip-ratio, for values."),
    ("vf_coef", float, "What the values' loss counts beside that of the tokens."),
]
_SOURCES: list[tuple[str, Any, str]] = [
    ("reward", list, "A function that rewards answers, as module:function or file.py:function."),
    ("reward_regex", list, "A regular expression: 1 for answers in which it is found, 0 for others."),
    ("reward_model", list, "A folder that holds a reward model, of `edgellm train reward`."),
]
_FLAGS = {"use_rslora": "--rslora/--no-rslora"}  # others are called as their settings are
_FULL: list[tuple[str, Any, str]] = [
    ("freeze", str, "Tensors that stay as they are: names or their beginnings, with commas between."),
]
_TABLES = {FullConfig: _FULL,
    LoraConfig: _LORA, TrainConfig: _TRAIN, DataConfig: _DATA, DpoConfig: _DPO, KtoConfig: _KTO, OrpoConfig: _ORPO,
    RewardConfig: _REWARD, GrpoConfig: _GRPO, PpoConfig: _PPO,
    RewardSources: _SOURCES,
}  # fmt: skip

# What a --config file may hold, of whichever training; type is that of the model that `full` writes.
EVERY_NAME = frozenset(field.name for kind in (*_TABLES, MachineConfig) for field in fields(kind)) | {"type"}


def settings_options(
    *kinds: type, defaults: Mapping[str, Any] | None = None, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command an option for each setting; it receives those that were typed, others as None.

    Kinds of which nothing is known here are settings of files whose options the command has itself.

    defaults:  those of the command, where they are not those of the settings.
    without:   settings that mean nothing to it.
    """
    others = defaults or {}

    def decorate(command: Command) -> Command:
        for kind in reversed([kind for kind in kinds if kind in _TABLES]):
            known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
            for name, of, text in reversed(_TABLES[kind]):
                if name not in without:
                    default = others.get(name, known[name].default)
                    command = _option(kind, name, default, of, text)(command)
        return command

    return decorate


def typed_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by the names of settings."""
    return {name: value for name, value in typed.items() if value not in (None, ())}


def _option(kind: type, name: str, default: Any, of: Any, text: str) -> Callable[[Command], Command]:
    words: dict[str, Any] = {"help": text + _default(default), "default": None, "callback": checked_by(kind)}
    long_name = name.replace("_", "-")
    if of is True:
        return click.option(_FLAGS.get(name, f"--{long_name}/--no-{long_name}"), name, **words)
    if of is list:
        words |= {"multiple": True, "default": (), "metavar": "NAME"}
    elif isinstance(of, tuple):
        words["type"] = click.Choice(of)
    elif of is TEXT:
        words["metavar"] = "TEXT"
    else:
        words |= {"type": of, "metavar": {int: "N", float: "X", str: "NAMES"}[of]}
    return click.option(f"--{long_name}", name, **words)


def _default(default: Any) -> str:
    if default is None or default is False or default is MISSING or default == "":
        return ""
    if default is True:
        return "  [default: on]"
    return f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"
