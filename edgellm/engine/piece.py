"""A piece of an answer, as it is handed to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True)
class Piece:
    """Some text of an answer. kind: "content", which is said, or "reasoning", which is thought."""

    kind: Kind
    text: str
