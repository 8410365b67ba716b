"""A piece of an answer, as it is handed to people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Kind = Literal["content", "reasoning"]


class Piece(NamedTuple):
    """Some text of an answer. kind: "content", which is said, or "reasoning", which is thought."""

    kind: Kind
    text: str


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring pieces of one kind in one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind:
            found[-1] = Piece(piece.kind, found[-1].text + piece.text)
        else:
            found.append(piece)
    return found
