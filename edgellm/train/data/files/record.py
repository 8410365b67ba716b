"""One record of a data file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """What a line, a row or an entry of a file holds.

    place:    where it stands, for people: "chats.jsonl, line 7".
    values:   what it holds, by key; values are those of JSON.
    problem:  why it cannot be used, or None.
    is_file:  whether it is a whole file of plain text.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    is_file: bool = False
