"""What /set changes: how the next token is chosen, and how the chat behaves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgellm.cli.chat.window import DEFAULT_WAY, WAYS
from edgellm.cli.sampling import read_setting, setting_names
from edgellm.errors import UsageError
from edgellm.params import SamplingParams


@dataclass(frozen=True)
class Behaviour:
    """when_full: see `window`. markdown: answers are drawn as Markdown, where that can be. stats: after each answer.
    think: whether the model thinks before it answers; None leaves that to its template.
    """

    when_full: str = DEFAULT_WAY
    markdown: bool = True
    stats: bool = False
    think: bool | None = None


# Settings of sampling that are always shown.
COMMON = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "max_tokens",
)  # fmt: skip
SWITCHES = {"on": True, "off": False}
# Settings of the chat, and the words that each may have.
WORDS: dict[str, dict[str, Any]] = {
    "when_full": {way: way for way in WAYS},
    "markdown": SWITCHES,
    "stats": SWITCHES,
    "think": {**SWITCHES, "auto": None},
}


def names() -> list[str]:
    """All that can be set."""
    return [*setting_names(), *WORDS]


def plain_name(typed: str) -> str:
    """A setting by its own name: people also type those of the options."""
    return {"temp": "temperature"}.get(typed, typed).replace("-", "_")


def changed(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """`sampling` with one setting changed by what a person typed. Raises UsageError."""
    name = plain_name(name)
    if name not in setting_names():
        raise UsageError(f"no setting {name}; there are {', '.join(names())}")
    change: dict[str, Any] = {name: read_setting(name, value)}
    return dataclasses.replace(sampling, **change)


def behaving(behaviour: Behaviour, name: str, value: str) -> Behaviour:
    """`behaviour` with one setting changed by what a person typed. Raises UsageError."""
    name = plain_name(name)
    if value not in WORDS[name]:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(WORDS[name])}")
    return dataclasses.replace(behaviour, **{name: WORDS[name][value]})


def lines(sampling: SamplingParams, behaviour: Behaviour) -> str:
    """The settings of the chat, those of sampling that people change most, and others that are not as by default."""
    values = {name: getattr(sampling, name) for name in setting_names()}
    shown = {name: value for name, value in values.items() if name in COMMON or value != getattr(SamplingParams, name)}
    words = {name: _word(value) for name, value in shown.items()}
    for name, known in WORDS.items():
        words[name] = next(word for word, value in known.items() if value == getattr(behaviour, name))
    return "\n".join(f"  {name}: {word}" for name, word in words.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(repr, value)) or "none"
    return "none" if value is None else str(value)
