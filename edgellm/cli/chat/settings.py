"""What /set changes: how the next token is chosen, and how the chat behaves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgellm.cli.chat.window import DEFAULT_WAY, WAYS
from edgellm.errors import UsageError
from edgellm.params import SamplingParams


@dataclass(frozen=True)
class Behaviour:
    """when_full: see `window`. markdown: answers are drawn as Markdown, where that can be. stats: after each answer."""

    when_full: str = DEFAULT_WAY
    markdown: bool = True
    stats: bool = False


SWITCHES = {"on": True, "off": False}
# Settings of the chat, and the words that each may have.
WORDS: dict[str, dict[str, Any]] = {
    "when_full": {way: way for way in WAYS},
    "markdown": SWITCHES,
    "stats": SWITCHES,
}


def names() -> list[str]:
    """All that can be set."""
    return [*(field.name for field in dataclasses.fields(SamplingParams)), *WORDS]


def plain_name(typed: str) -> str:
    """A setting by its own name: people also type those of the options."""
    return {"temp": "temperature"}.get(typed, typed).replace("-", "_")


def changed(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """`sampling` with one setting changed by what a person typed. Raises UsageError."""
    name = plain_name(name)
    if name not in [field.name for field in dataclasses.fields(SamplingParams)]:
        raise UsageError(f"no setting {name}; there are {', '.join(names())}")
    default = getattr(SamplingParams(), name)
    change: dict[str, Any] = {name: None}
    try:
        if value != "none" or default is not None:
            change = {name: float(value) if isinstance(default, float) else int(value)}
    except ValueError:
        raise UsageError(f"{name} is {value!r}; expected a number, as in: /set {name} {default or 1}") from None
    return dataclasses.replace(sampling, **change)


def behaving(behaviour: Behaviour, name: str, value: str) -> Behaviour:
    """`behaviour` with one setting changed by what a person typed. Raises UsageError."""
    name = plain_name(name)
    if value not in WORDS[name]:
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(WORDS[name])}")
    return dataclasses.replace(behaviour, **{name: WORDS[name][value]})


def lines(sampling: SamplingParams, behaviour: Behaviour) -> str:
    """All settings, one a line."""
    rows = {**vars(sampling), **vars(behaviour)}
    return "\n".join(f"  {name}: {_word(value)}" for name, value in rows.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
