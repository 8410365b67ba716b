"""Options that commands share. Their defaults are those of `edgellm.params`; none is written here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

import click

from edgellm.errors import EdgellmError, UsageError
from edgellm.params import ACTIVATIONS, DEFAULT_CONTEXT_LIMIT, KV_TYPES, RuntimeConfig, SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = SamplingParams()

_SAMPLING = [
    (
        "max_tokens",
        ("-n", "--max-tokens"),
        int,
        "Stop after N tokens; without it, when the text is complete.",
    ),
    ("temperature", ("--temp",), float, "Higher is more varied; 0 always takes the likeliest token."),
    ("top_k", ("--top-k",), int, "Choose among the N likeliest tokens; 0 is off."),
    (
        "top_p",
        ("--top-p",),
        float,
        "Choose among the likeliest tokens that share this probability; 1 is off.",
    ),
    ("min_p", ("--min-p",), float, "Leave out tokens below this fraction of the likeliest; 0 is off."),
    ("repeat_penalty", ("--repeat-penalty",), float, "Make repeated tokens less likely; 1 is off."),
    ("seed", ("--seed",), int, "The same seed gives the same text."),
]


def typed_name(option: click.Parameter) -> str:
    """An option as people type it: -t/--threads."""
    return "/".join(option.opts)


def as_typed(error: EdgellmError, options: Iterable[click.Parameter]) -> str:
    """An error's text with the options that were typed, or can be, in place of parameters of the Python interface.

    A parameter is told from a word by its underscore, or by being what the error is about.
    """
    line = str(error)
    begins = re.match(r"(\w+) is ", line)
    about = getattr(error, "parameter", None) or (begins[1] if begins else None)
    for option in options:
        if isinstance(option, click.Option) and option.name and (option.name == about or "_" in option.name):
            line = re.sub(rf"\b{option.name}\b", typed_name(option), line)
    return line


def _checked(kind: type) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A check of an option's value by the parameter object that it belongs to, before any work begins."""

    def check(context: click.Context, option: click.Parameter, value: Any) -> Any:
        if value is not None and option.name is not None:
            try:
                kind(**{option.name: value})
            except UsageError as error:
                raise UsageError(str(error).replace(option.name, typed_name(option), 1)) from None
        return value

    return check


def sampling_options(command: Command) -> Command:
    """Give a command the options of SamplingParams; it receives those that were typed, others as None."""
    for name, flags, kind, text in reversed(_SAMPLING):
        default = getattr(_DEFAULTS, name)
        shown = f"  [default: {default}]" if default is not None else ""
        metavar = "N" if kind is int else "X"
        check = _checked(SamplingParams)
        command = click.option(*flags, name, type=kind, metavar=metavar, help=text + shown, callback=check)(command)
    return command


def sampling_params(typed: dict[str, Any]) -> SamplingParams:
    """The parameters that were typed, over the defaults. Raises UsageError for values that cannot work."""
    return SamplingParams(**{name: value for name, value in typed.items() if value is not None})


def runtime_options(command: Command) -> Command:
    """Give a command -t, -c, --kv-type, --activations and --cache-bytes; it receives them as `runtime`."""
    context = (
        f"Tokens that prompt and answers may fill together.  [default: the model's, up to {DEFAULT_CONTEXT_LIMIT}]"
    )
    stored = "How keys and values are stored; q8_0 takes about half the memory, f32 is exact."
    memory = "Memory for the keys and values of all texts together.  [default: a part of what is free]"
    check = _checked(RuntimeConfig)
    command = as_runtime(command)
    command = click.option("--cache-bytes", type=int, metavar="N", help=memory, callback=check)(command)
    command = activations_option(command)
    command = click.option(
        "--kv-type", type=click.Choice(KV_TYPES), default=RuntimeConfig.kv_type, show_default=True, help=stored
    )(command)
    command = click.option("-c", "--ctx", "n_ctx", type=int, metavar="N", help=context, callback=check)(command)
    return threads_option(command)


def as_runtime(command: Command) -> Command:
    """Hand a command its options of RuntimeConfig as one, `runtime`."""
    names = {field.name for field in fields(RuntimeConfig)}

    @functools.wraps(command)
    def with_runtime(**typed: Any) -> Any:
        runtime = RuntimeConfig(**{name: typed.pop(name) for name in names & typed.keys()})
        return command(runtime=runtime, **typed)

    return with_runtime  # type: ignore[return-value]


def activations_option(command: Command) -> Command:
    """Give a command --activations."""
    text = "int8 rounds what meets quantized weights: fast and nearly exact; f32 rounds nothing: the reference."
    default = RuntimeConfig.activations
    return click.option("--activations", type=click.Choice(ACTIVATIONS), default=default, show_default=True, help=text)(
        command
    )


def threads_option(command: Command) -> Command:
    """Give a command -t."""
    text = "Worker threads.  [default: what is fastest here]"
    check = _checked(RuntimeConfig)
    return click.option("-t", "--threads", "n_threads", type=int, metavar="N", help=text, callback=check)(command)
