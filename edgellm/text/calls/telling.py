"""Calls of tools in streams: told piece by piece, as the model writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgellm.text.calls.following import OpenCall


class CallDelta(NamedTuple):
    """What is new of a call.

    number:    which of the answer it is. is_first: nothing of it was told before.
    is_whole:  nothing more comes of it.
    """

    number: int
    call: OpenCall
    is_first: bool
    text: str
    is_whole: bool


@dataclass
class _Told:
    """What was told of one call."""

    n_characters: int = 0
    is_whole: bool = False


class ToldCalls:
    """How much was told of the calls of one answer."""

    def __init__(self) -> None:
        self._each: list[_Told] = []

    @property
    def n_calls(self) -> int:
        """Calls of which something was told."""
        return len(self._each)

    @property
    def n_whole(self) -> int:
        """Calls of which all was told."""
        return sum(told.is_whole for told in self._each)

    def new(self, calls: Sequence[OpenCall]) -> Iterator[CallDelta]:
        """What is there by now, and was not told yet; another thread may be writing more."""
        for number, call in enumerate(list(calls)):
            is_whole = call.is_whole  # before its arguments, to which nothing is added then
            text = call.arguments
            is_first = number == self.n_calls
            if is_first:
                self._each.append(_Told())
            told = self._each[number]
            new, ends = text[told.n_characters :], is_whole and not told.is_whole
            told.n_characters, told.is_whole = len(text), is_whole
            if is_first or new or ends:
                yield CallDelta(number, call, is_first, new, is_whole)
