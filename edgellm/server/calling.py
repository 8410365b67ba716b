"""Calls of tools in streams: told piece by piece, as the model writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgellm.text.calls.following import OpenCall


class CallDelta(NamedTuple):
    """What is new of a call. number: which of the answer it is. is_first: nothing of it was told before."""

    number: int
    call: OpenCall
    is_first: bool
    text: str


class ToldCalls:
    """How much was told of the calls of one answer."""

    def __init__(self) -> None:
        self._n_characters: list[int] = []  # of the arguments of each call

    @property
    def n_calls(self) -> int:
        """Calls of which something was told."""
        return len(self._n_characters)

    def new(self, calls: Sequence[OpenCall]) -> Iterator[CallDelta]:
        """What is there by now, and was not told yet; another thread may be writing more."""
        for number, call in enumerate(list(calls)):
            text = call.arguments
            is_first = number == self.n_calls
            if is_first:
                self._n_characters.append(0)
            n_told, self._n_characters[number] = self._n_characters[number], len(text)
            if is_first or len(text) > n_told:
                yield CallDelta(number, call, is_first, text[n_told:])
