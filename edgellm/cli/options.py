"""Options that commands share. Their defaults are those of `edgellm.params`; none is written here."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from edgellm import checks
from edgellm.errors import EdgellmError, UsageError
from edgellm.params import ACTIVATIONS, DEFAULT_CONTEXT_LIMIT, KV_TYPES, LAYOUTS, SAMPLERS, SPECULATE, RuntimeConfig

Command = TypeVar("Command", bound=Callable[..., Any])

# Around the name of a parameter: no characters that make it a part of a path or of another word.
NO_PATH_BEFORE, NO_PATH_BEHIND = r"(?<![\w./\\-])", r"(?![\w/\\-]|\.\w|, line \d)"
THREADS_PER_CORE, LEAST_MOST_THREADS = 4, 64  # beyond these, threads do little else than wait for each other
MOST_SCALE = 1e30  # of an adapter: far more than means anything, and far less than float32 holds


def typed_name(option: click.Parameter) -> str:
    """An option as people type it: -t/--threads."""
    return "/".join(option.opts)


def as_typed(error: EdgellmError, options: Iterable[click.Parameter]) -> str:
    """An error's text with the options that were typed, or can be, in place of parameters of the Python interface.

    A parameter is told from a word by its underscore, or by being what the error is about; the steps of sampling have
    some names in common with parameters. What is part of a path stays as it is, and what is about a file of settings.
    """
    line = str(error)
    if error.is_of_file:
        return line
    begins = re.match(r"(\w+) is ", line)
    about = getattr(error, "parameter", None) or (begins[1] if begins else None)
    for option in options:
        name = option.name or ""
        is_named = name == about or ("_" in name and name not in SAMPLERS)
        if isinstance(option, click.Option) and is_named:
            behind = r"\b" if name == about and "_" in name else NO_PATH_BEHIND  # a part of it may be named: x_y.z
            line = re.sub(rf"{NO_PATH_BEFORE}{name}{behind}", typed_name(option), line)
    return line


def named_path(context: click.Context, option: click.Parameter, value: str) -> Path:
    """The path that was typed; a path made of nothing would be the current folder."""
    if not value:
        raise UsageError(f"{typed_name(option)} is empty; expected a path")
    return Path(value)


def checked_by(kind: type) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A check of an option's value by the parameter object that it belongs to, before any work begins."""

    def check(context: click.Context, option: click.Parameter, value: Any) -> Any:
        if value is not None and option.name is not None:
            try:
                kind(**{option.name: value})
            except UsageError as error:
                raise UsageError(str(error).replace(option.name, typed_name(option), 1)) from None
        return value

    return check


class Size(click.ParamType):
    """Bytes, as a number or with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        found = value if isinstance(value, int) else checks.size(value)
        if found is None:
            self.fail(f"{value!r:.40} is no size; expected bytes, such as 1000000000, 1GB or 512MiB", param, context)
        return found


def runtime_options(command: Command) -> Command:
    """Give a command -t, -c, --kv-type, --activations, --cache-bytes and --layout; it receives them as `runtime`."""
    context = (
        f"Tokens that prompt and answers may fill together.  [default: the model's, up to {DEFAULT_CONTEXT_LIMIT}]"
    )
    stored = (
        f"How keys and values are stored: {', '.join(KV_TYPES)}, or a type each, as in q8_0:q4_0. q8_0 takes about "
        "half the memory, q4_0 a quarter, f32 is exact."
    )
    memory = "Memory for the keys and values of all texts together.  [default: a part of what is free]"
    laid_out = (
        "How weights lie: as in the file; as tiles, in a second file that is made once; as tiles in memory, made at "
        "every start. auto takes tiles where they are quicker and the disk has room."
    )
    check = checked_by(RuntimeConfig)
    command = as_runtime(command)
    command = click.option(
        "--layout", type=click.Choice(LAYOUTS), default=RuntimeConfig.layout, show_default=True, help=laid_out
    )(command)
    command = click.option("--cache-bytes", type=Size(), metavar="SIZE", help=memory, callback=check)(command)
    command = activations_option(command)
    for half, what in ("k", "keys"), ("v", "values"):  # as llama.cpp has it
        command = click.option(
            f"--cache-type-{half}", type=click.Choice(KV_TYPES), hidden=True, help=f"The type of {what} in --kv-type."
        )(command)
    command = click.option(
        "--kv-type", metavar="TYPE", default=RuntimeConfig.kv_type, show_default=True, help=stored, callback=check,
        shell_complete=_complete_kv_types,
    )(command)  # fmt: skip
    command = click.option("-c", "--ctx", "n_ctx", type=int, metavar="N", help=context, callback=check)(command)
    return threads_option(command)


def template_option(command: Command) -> Command:
    """Give a command --template; it stands above `runtime_options`, which hands it over."""
    text = (
        "The chat template: a FILE with Jinja text, or the NAME of a known one, such as chatml, llama3 or mistral.  "
        "[default: the model's own]"
    )
    return click.option("--template", metavar="FILE|NAME", help=text)(command)


def lora_option(command: Command) -> Command:
    """Give a command --lora; it receives `adapters`, scales by path."""
    text = (
        "An adapter of any kind to run with: a PEFT folder or a GGUF adapter, with its scale (1 unless given). May "
        "stand again."
    )
    return click.option(
        "--lora", "adapters", type=click.Path(), multiple=True, metavar="PATH[=SCALE]", help=text, callback=_scales
    )(command)


def scales_of(texts: Iterable[str], option: str) -> dict[Path, float]:
    """The scale of each adapter, as PATH or PATH=SCALE says it. Raises UsageError in the words that were typed."""
    found: dict[Path, float] = {}
    for text in texts:
        path, scale = Path(os.path.expanduser(text)), 1.0
        name, equals, number = text.rpartition("=")
        if equals and not path.exists():
            path = Path(os.path.expanduser(name))
            try:
                scale = float(number)
            except ValueError:
                raise UsageError(f"{option} {text}: {number!r:.40} is no number; expected PATH or PATH=SCALE") from None
            if not name or not abs(scale) < MOST_SCALE:
                raise UsageError(f"{option} {text}: expected PATH=SCALE, with a number below {MOST_SCALE:g} as SCALE")
        if path in found:
            raise UsageError(f"{option} names {path} twice; give it once, with the scale that you want")
        found[path] = scale
    return found


def _scales(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[Path, float]:
    return scales_of(texts, typed_name(option))


def as_runtime(command: Command) -> Command:
    """Hand a command its options of RuntimeConfig as one, `runtime`."""
    names = {field.name for field in fields(RuntimeConfig)}

    @functools.wraps(command)
    def with_runtime(**typed: Any) -> Any:
        if "kv_type" in typed:
            typed["kv_type"] = _kv_type(typed["kv_type"], typed.pop("cache_type_k"), typed.pop("cache_type_v"))
        runtime = RuntimeConfig(**{name: typed.pop(name) for name in names & typed.keys()})
        return command(runtime=runtime, **typed)

    return with_runtime  # type: ignore[return-value]


def _kv_type(both: str, keys: str | None, values: str | None) -> str:
    """What --kv-type, or --cache-type-k and --cache-type-v, ask for. Raises UsageError where they contradict."""
    if keys is None and values is None:
        return both
    source = click.get_current_context().get_parameter_source("kv_type")
    if source is not click.core.ParameterSource.DEFAULT:
        given = "--cache-type-k" if keys is not None else "--cache-type-v"
        raise UsageError(f"{given} cannot be used with --kv-type, which says both; leave one out")
    return f"{keys or both}:{values or both}"


def _complete_kv_types(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    first, colon, _ = begun.partition(":")
    return [
        CompletionItem(name)
        for kind in KV_TYPES
        if (name := f"{first}{colon}{kind}" if colon else kind).startswith(begun)
    ]


def speculation_options(command: Command) -> Command:
    """Give a command with runtime options those of guessing and of what is kept on the disk."""
    mode = "Guess tokens and check several in one pass, which changes no answer: auto where it is quicker as measured."
    draft = "A smaller model of the same vocabulary that guesses too: a name or a path."
    layers = "So many of the model's own first layers guess too."
    most = "Tokens guessed at once, at most."
    disk = "Disk that keys and values of long prompts may take, to be there after a restart; 0 keeps none."
    check = checked_by(RuntimeConfig)
    command = click.option("--disk-bytes", type=Size(), metavar="SIZE", default=RuntimeConfig.disk_bytes,
                           show_default=True, help=disk, callback=check)(command)  # fmt: skip
    command = click.option("--draft-max", type=int, metavar="N", default=RuntimeConfig.draft_max, show_default=True,
                           help=most, callback=check)(command)  # fmt: skip
    command = click.option("--draft-layers", type=int, metavar="N", help=layers, callback=check)(command)
    command = click.option("--draft", metavar="MODEL", help=draft, callback=check)(command)
    return click.option("--speculate", type=click.Choice(SPECULATE), default=RuntimeConfig.speculate,
                        show_default=True, help=mode)(command)  # fmt: skip


def activations_option(command: Command) -> Command:
    """Give a command --activations."""
    text = "int8 rounds what meets quantized weights: fast and nearly exact; f32 rounds nothing: the reference."
    default = RuntimeConfig.activations
    return click.option("--activations", type=click.Choice(ACTIVATIONS), default=default, show_default=True, help=text)(
        command
    )


def check_threads(name: str, n_threads: int | None) -> None:
    """Raise UsageError for more threads than are of any use on this machine. name: what they are called."""
    if n_threads is None or n_threads <= LEAST_MOST_THREADS:
        return
    from edgellm.machine.others import n_cores  # seldom needed

    if n_threads > (most := max(LEAST_MOST_THREADS, THREADS_PER_CORE * n_cores())):
        cores = "1 core" if n_cores() == 1 else f"{n_cores()} cores"
        raise UsageError(
            f"{name} is {n_threads}, and this machine has {cores}; more threads than cores wait for each other: "
            f"expected up to {most}"
        )


def threads_option(command: Command) -> Command:
    """Give a command -t."""
    text = "Worker threads.  [default: what is fastest here]"
    by_config = checked_by(RuntimeConfig)

    def check(context: click.Context, option: click.Parameter, value: Any) -> Any:
        found = by_config(context, option, value)
        check_threads(typed_name(option), found)
        return found

    return click.option("-t", "--threads", "n_threads", type=int, metavar="N", help=text, callback=check)(command)
