"""What guesses: see `lookup`, which reads in the text so far, and `draft`, which asks a quicker model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from edgellm.dataclass import dataclass
from edgellm.engine.request import Request
from edgellm.engine.speculation.pace import Pace


@dataclass
class Guess:
    """Tokens that may come next. chances: how likely each is right, if those before it are."""

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)


class Drafter(Protocol):
    """Guesses for texts that are being written. One thread at a time."""

    def guess(self, requests: Sequence[Request], most: int, pace: Pace) -> dict[Request, Guess]:
        """Up to `most` tokens for each text that it has an idea of."""

    def forget(self, request: Request) -> None:
        """A text has ended."""

    def close(self) -> None:
        """Give back all memory."""


def n_right(guess: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many of the first tokens of a guess came, in a text that had `start` tokens when it was guessed."""
    n = 0
    for guessed, came in zip(guess, tokens[start : start + len(guess)], strict=False):
        if guessed != came:
            break
        n += 1
    return n
