"""One record of a data file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEEPEST = 100  # lists and objects within each other


@dataclass(frozen=True)
class Record:
    """What a line, a row or an entry of a file holds.

    place:    where it stands, for people: "chats.jsonl, line 7".
    values:   what it holds, by key; values are those of JSON.
    problem:  why it cannot be used, or None.
    is_file:  whether it is a whole file of plain text.
    is_row:   whether its values are texts alone, in which lists and objects are JSON: a row of CSV.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    is_file: bool = False
    is_row: bool = False


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects lie more than DEEPEST deep, where comparing or copying them could fail."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
