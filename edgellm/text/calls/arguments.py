"""How the arguments of a call are written: as JSON, or one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.text.calls.values import decoded, decoded_at, plain_value

_KEY = re.compile(r"[\w.$-]+")


@dataclass(frozen=True)
class JsonArguments:
    """Arguments as one JSON object; inside of a JSON string where `quoted`."""

    quoted: bool = False

    def write(self, arguments: Mapping[str, Any]) -> str:
        text = json.dumps(arguments, ensure_ascii=False)
        return json.dumps(text, ensure_ascii=False) if self.quoted else text

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
        """The arguments that begin at a place, and where they end; None when they are not whole."""
        start = skip(text, at, " ")
        try:
            found, end = decoded_at(text, start or 0)
            if isinstance(found, str):  # some models quote them though their template does not
                found = decoded(found)
        except (ValueError, RecursionError):
            return None
        return (found, end) if isinstance(found, dict) else None


@dataclass(frozen=True)
class Written:
    """What stands before and behind a value."""

    before: str
    after: str


@dataclass(frozen=True)
class ListedArguments:
    """Arguments one by one: opening KEY before VALUE after (between KEY before VALUE after)* closing.

    empty:   what stands in the place of all that without any argument.
    texts:   around a text, which stands as it is.
    others:  around any other value, which is JSON.
    """

    opening: str
    between: str
    closing: str
    empty: str
    texts: Written
    others: Written

    def write(self, arguments: Mapping[str, Any]) -> str:
        if not arguments:
            return self.empty
        return self.opening + self.between.join(map(self._item, arguments.items())) + self.closing

    def _item(self, item: tuple[str, Any]) -> str:
        key, value = item
        how = self.texts if isinstance(value, str) else self.others
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return f"{key}{how.before}{text}{how.after}"

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
        """The arguments that begin at a place, and where they end; None when they are not whole."""
        found: dict[str, Any] = {}
        next_at = skip(text, at, self.opening)
        while next_at is not None and (key := _KEY.match(text, next_at)):
            read = self._read_value(text, key.end(), _type_of(schema, key[0]))
            if read is None:
                return None
            found[key[0]], at = read
            next_at = skip(text, at, self.between)
        end = skip(text, at, self.closing if found else self.empty)
        return None if end is None else (found, end)

    def _read_value(self, text: str, at: int, kind: object) -> tuple[Any, int] | None:
        same = self.texts == self.others
        for how in (self.texts,) if same else (self.texts, self.others):
            start = skip(text, at, how.before, exact_end=True)
            if start is None:
                continue
            if how is self.others:
                try:
                    value, end = decoded_at(text, start)
                except (ValueError, RecursionError):
                    value, end = None, -1
                after = skip(text, end, how.after) if end >= 0 else None
                if after is not None:
                    return value, after
            for end, after in self._ends(text, start, how.after):
                raw = text[start:end]
                if how is self.others or (same and kind != "string"):
                    return plain_value(raw), after
                return raw, after
        return None

    def _ends(self, text: str, start: int, after: str) -> Any:
        """Where a value may end that began at `start`, and where the text goes on: what follows must fit."""
        for end in range(start, len(text) + 1):
            if not text.startswith(after[:1], end):
                continue
            behind = skip(text, end, after) if after else end
            if behind is not None and any(
                skip(text, behind, what) is not None for what in (self.between, self.closing)
            ):
                yield end, behind


def skip(text: str, at: int, literal: str, exact_end: bool = False) -> int | None:
    """Where a text goes on behind a literal, or None when another text stands there. White space may differ.

    exact_end:  white space after the literal is no part of it.
    """
    last = 0
    end = at
    for char in literal:
        if char.isspace() and not exact_end:
            continue
        while not exact_end and end < len(text) and text[end].isspace():
            end += 1
        if not text.startswith(char, end):
            return None
        end += 1
        last = end
    if literal[-1:].isspace() and not exact_end:
        while end < len(text) and text[end].isspace():
            end += 1
    return end if literal else max(at, last)


def common_start(one: str, other: str) -> str:
    """What two texts begin with."""
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return one[:n]


def common_end(one: str, other: str) -> str:
    """What two texts end with."""
    return common_start(one[::-1], other[::-1])[::-1]


def _type_of(schema: Mapping[str, Any], key: str) -> object:
    kind = schema.get("properties", {}).get(key)
    return kind.get("type") if isinstance(kind, Mapping) else None
