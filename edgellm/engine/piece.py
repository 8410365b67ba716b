"""A piece of an answer, as it is handed to people."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["content", "reasoning"]


class Piece(NamedTuple):
    """Some text of an answer. kind: "content", which is said, or "reasoning", which is thought."""

    kind: Kind
    text: str
