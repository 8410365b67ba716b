"""The options of SamplingParams, in sections, and the same settings as a chat's /set reads them.

Defaults are those of `edgellm.params`; none is written here. Names are those of llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from edgellm.cli.options import checked_by
from edgellm.errors import FileProblem, UsageError
from edgellm.params import DEFAULT_SAMPLERS, STRUCTURES, SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])

_BIAS = re.compile(r"(\d{1,18})([+-](?:inf|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?))", re.ASCII)
NOT_TYPED = ("logprobs", "when_full", *STRUCTURES)  # a terminal has no place for them, or commands ask in their own way
# Options that may be given again and again.
SEVERAL = ("choices", "stop", "banned_strings", "dry_sequence_breakers", "logit_bias")

# Parameter, flags, metavar and help of each option.
_SECTIONS = {
    "The answer": [
        ("max_tokens", ["-n", "--max-tokens"], "N", "Stop after N tokens; without it, when the text is complete."),
        ("stop", ["--stop"], "TEXT", "Stop where the answer has TEXT, which is not shown. May be given several times."),
        ("banned_strings", ["--ban"], "TEXT", "Never write TEXT: go back and choose other words. Several times, too."),
        ("n_keep", ["--keep"], "N", "Tokens of the prompt that --when-full shift never leaves out; -1 is all of it."),
        ("seed", ["--seed"], "N", "The same seed gives the same text."),
    ],
    "Its structure": [
        ("response_format", ["--json-schema"], "FILE", "The answer is JSON of the schema in FILE, or typed here."),
        ("grammar", ["--grammar"], "FILE", "The answer is a text of the grammar in FILE, GBNF or Lark, or typed here."),
        ("regex", ["--regex"], "PATTERN", "All of the answer matches PATTERN."),
        ("choices", ["--choices"], "A,B", "The answer is one of these texts. May be given several times."),
    ],
    "Choosing words": [
        ("temperature", ["--temp", "--temperature"], "X", "Higher is more varied; 0 always takes the likeliest token."),
        ("top_k", ["--top-k"], "N", "Choose among the N likeliest tokens; 0 is off."),
        ("top_p", ["--top-p"], "X", "Choose among the likeliest tokens that share this probability; 1 is off."),
        ("min_p", ["--min-p"], "X", "Leave out tokens below this fraction of the likeliest; 0 is off."),
        ("samplers", ["--samplers"], "NAMES", "The steps and their order, with ; between them."),
        ("logit_bias", ["-l", "--logit-bias"], "ID+X", "Add X to the logit of token ID, as in 15043+1 or 15043-inf."),
    ],
    "Against repetition": [
        ("repeat_penalty", ["--repeat-penalty"], "X", "Make repeated tokens less likely; 1 is off."),
        ("presence_penalty", ["--presence-penalty"], "X", "Take X from the logit of each repeated token; 0 is off."),
        ("frequency_penalty", ["--frequency-penalty"], "X", "Take X each time that it was there; 0 is off."),
        ("repeat_last_n", ["--repeat-last-n"], "N", "How far these three look back; -1 is the whole text."),
        ("dry_multiplier", ["--dry-multiplier"], "X", "DRY: make longer repetitions ever less likely; 0 is off."),
        ("dry_base", ["--dry-base"], "X", "DRY: times X for each token that a repetition is longer."),
        ("dry_allowed_length", ["--dry-allowed-length"], "N", "DRY: tokens of a repetition that cost nothing yet."),
        ("dry_penalty_last_n", ["--dry-penalty-last-n"], "N", "DRY: how far it looks back; -1 is the whole text."),
        (
            "dry_sequence_breakers",
            ["--dry-sequence-breaker"],
            "TEXT",
            "DRY: no repetition reaches across TEXT; none is nothing. May be given several times.",
        ),
    ],
    "Other ways to choose": [
        ("typical_p", ["--typical"], "X", "Choose among the tokens of usual surprise that share X; 1 is off."),
        ("top_n_sigma", ["--top-n-sigma"], "X", "Leave out logits X deviations below the largest; -1 is off."),
        ("xtc_probability", ["--xtc-probability"], "X", "How often XTC leaves out the likeliest tokens; 0 is off."),
        ("xtc_threshold", ["--xtc-threshold"], "X", "XTC: those of at least this probability, but for the last."),
        ("dynatemp_range", ["--dynatemp-range"], "X", "Temperature is up to X lower or higher, by entropy; 0 is off."),
        ("dynatemp_exponent", ["--dynatemp-exp"], "X", "How entropy becomes temperature."),
        ("mirostat", ["--mirostat"], "N", "2 keeps the surprise of the text near --mirostat-ent; 0 is off."),
        ("mirostat_tau", ["--mirostat-ent"], "X", "That surprise, in bits for each token."),
        ("mirostat_eta", ["--mirostat-lr"], "X", "How quickly it is approached."),
        ("adaptive_target", ["--adaptive-target"], "X", "Draw tokens of about this probability; -1 is off."),
        ("adaptive_decay", ["--adaptive-decay"], "X", "How long earlier tokens count for that, from 0 to 0.99."),
    ],
}  # fmt: skip


class SectionedCommand(click.Command):
    """A command whose help shows the options of each section under its title."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _SectionedOption(click.Option):
    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def sampling_options(command: Command) -> Command:
    """Give a command the options of SamplingParams; it receives those that were typed, others as None."""
    for section, options in reversed(_SECTIONS.items()):
        for name, flags, metavar, text in reversed(options):
            command = click.option(
                *flags,
                name,
                type=_kind(name),
                multiple=name in SEVERAL,
                metavar=metavar,
                help=text + _shown_default(name),
                callback=_read_typed,
                cls=_SectionedOption,
                section=section,
            )(command)
    return command


def sampling_params(typed: dict[str, Any], recommended: Mapping[str, Any] | None = None) -> SamplingParams:
    """The parameters that were typed, over those that a model's file recommends, over the defaults.

    Raises UsageError for values that cannot work.
    """
    given = {name: value for name, value in typed.items() if value is not None}
    if not recommended:
        return SamplingParams(**given)
    from edgellm.engine.recommended import recommended_over_defaults

    return recommended_over_defaults(recommended, given)


def setting_names() -> list[str]:
    """The parameters that can be typed."""
    return [field.name for field in fields(SamplingParams) if field.name not in NOT_TYPED]


def read_setting(name: str, text: str) -> Any:
    """The value that a person typed behind /set NAME. "none" is no value; texts may be written as JSON.

    Raises UsageError for what is no number where one is expected.
    """
    default = getattr(SamplingParams, name)
    if name in ("stop", "banned_strings", "dry_sequence_breakers"):
        return () if text == "none" else _texts(text)
    if text == "none" and default is None:
        return None
    if name == "logit_bias":
        return _biases(re.split(r"[\s,]+", text.strip()))
    if name == "samplers":
        return text
    try:
        return _kind(name)(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; expected a number, as in: /set {name} {default or 1}") from None


def _kind(name: str) -> type:
    default = getattr(SamplingParams, name)
    if name in SEVERAL or name in STRUCTURES or name == "samplers":
        return str
    return float if isinstance(default, float) else int


def _read_typed(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """What an option's words mean; checked before any work begins."""
    if option.multiple and not value:
        return None
    if option.name == "logit_bias" and value is not None:
        value = _biases(value)
    if option.name in _FILES and value is not None:
        value = _FILES[option.name](value)
    if option.name == "choices" and value:
        value = tuple(choice for word in value for choice in word.split(","))
    if option.name == "dry_sequence_breakers" and value == ("none",):
        value = ()
    return checked_by(SamplingParams)(context, option, value)


def _read_text(path: str) -> str:
    """A file of text. Raises FileProblem for bytes that are none, OSError for one that cannot be read."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: not valid UTF-8; expected a text") from None


def _read_grammar(given: str) -> str:
    """A grammar of GBNF as it is typed, or of a file."""
    return given if "::=" in given else _read_text(given)


def _read_schema(given: str) -> dict[str, Any]:
    """A schema as it is typed, or of a file."""
    is_typed = given.lstrip().startswith("{")
    try:
        found = json.loads(given if is_typed else _read_text(given))
    except (ValueError, RecursionError) as problem:
        if is_typed:
            raise UsageError(f"response_format is not valid JSON: {problem}", parameter="response_format") from None
        raise FileProblem(f"{given}: not valid JSON: {problem}") from None
    if not isinstance(found, dict):
        raise FileProblem(f'{given}: expected a JSON schema, an object such as {{"type": "object"}}')
    return found


# Options that may be files, and how they are read.
_FILES: dict[str, Callable[[str], Any]] = {"response_format": _read_schema, "grammar": _read_grammar}


def _biases(words: Iterable[str]) -> dict[int, float]:
    """Biases by token, of words such as 15043+1 and 15043-inf."""
    found = {}
    for word in words:
        match = _BIAS.fullmatch(word)
        if match is None:
            raise UsageError(
                f"logit_bias is {word!r:.60}; expected a token id, a sign and a number, such as 15043+1 or 15043-inf",
                parameter="logit_bias",
            )
        found[int(match[1])] = float(match[2])
    return found


def _texts(text: str) -> Any:
    """One text as it is, or as JSON one or several, so that it can hold a line feed."""
    if text.startswith(("[", '"')):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text


def _shown_default(name: str) -> str:
    default = getattr(SamplingParams, name)
    if name == "samplers":
        return f"  [default: {';'.join(DEFAULT_SAMPLERS)}]"
    if name == "dry_sequence_breakers":
        return "  [default: line feed, colon, quotation mark and asterisk]"
    return f"  [default: {default}]" if default not in (None, ()) else ""
