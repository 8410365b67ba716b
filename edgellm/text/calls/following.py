"""Calls while they are written: what is known of them before they are whole.

Only where the arguments are one JSON object and the name comes before, which most templates want: there, what the model
has written of the arguments is a beginning of their JSON. It is told as it stands, so all of it together is what the
model wrote. An id that comes behind the arguments comes too late: who hears of a call needs one at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgellm.text.calls.arguments import JsonArguments, skip
from edgellm.text.calls.syntax import ID, CallSyntax, new_id, one_of


@dataclass
class OpenCall:
    """A call that has begun. arguments: as much of their JSON as there is; is_whole: all of it."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=new_id)
    is_whole: bool = False


class CallFollower:
    """Goes along with a text of calls that grows.

    calls:  those that have begun, in their order; the last one may grow.
    """

    def __init__(self, syntax: CallSyntax, names: Iterable[str]) -> None:
        self.calls: list[OpenCall] = []
        self._syntax, self._words = syntax, {"name": one_of(dict.fromkeys(names)), "id": ID}
        parts = list(zip(syntax.order, ("", *syntax.middle), strict=True))
        n_before = syntax.order.index("arguments")
        self._before, self._behind = parts[:n_before], parts[n_before + 1 :]
        self._opens = parts[n_before][1]
        self._at = 0  # so much of the text is known
        self._depth = 0  # of brackets in the arguments; 0 between calls
        self._in_string = self._is_escaped = self._is_lost = False

    @staticmethod
    def follows(syntax: CallSyntax) -> bool:
        """Whether calls in this syntax can be told before they are whole."""
        how, order = syntax.arguments, syntax.order
        return order.index("name") < order.index("arguments") and isinstance(how, JsonArguments) and not how.quoted

    def follow(self, text: str) -> None:
        """text: all of it, from the first call on."""
        while not self._is_lost and (self._go_on(text) if self._depth else self._begin(text)):
            pass

    def _begin(self, text: str) -> bool:
        """The next call, up to its arguments. False where more text is needed."""
        at: int | None = self._at
        if self.calls:
            at, _ = self._read(text, at, self._behind)
        opening = self._syntax.again if self.calls else self._syntax.first
        at = None if at is None or opening is None else skip(text, at, opening)
        at, words = self._read(text, at, self._before)
        start = None if at is None else skip(text, at, self._opens)
        start = None if start is None else skip(text, start, " ")
        if start is None or start == len(text):
            return False
        if text[start] != "{":
            self._is_lost = True
            return False
        self.calls.append(OpenCall(words["name"], "{", words.get("id") or new_id()))
        self._at, self._depth = start + 1, 1
        return True

    def _read(self, text: str, at: int | None, parts: Iterable[tuple[str, str]]) -> tuple[int | None, dict[str, str]]:
        """Where a text goes on behind some parts of a call, each with what stands before it, and what they are; None
        where more text is needed.
        """
        found: dict[str, str] = {}
        for part, before in parts:
            start = None if at is None else skip(text, at, before)
            match = None if start is None else self._words[part].match(text, start)
            if match is None:
                return None, {}
            found[part], at = match[0], match.end()
        return at, found

    def _go_on(self, text: str) -> bool:
        """More of the arguments. False where they have not ended."""
        start = self._at
        while self._depth and self._at < len(text):
            char = text[self._at]
            self._at += 1
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
        call = self.calls[-1]
        call.arguments += text[start : self._at]
        call.is_whole = self._depth == 0
        return call.is_whole
