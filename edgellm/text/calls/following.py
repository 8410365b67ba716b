"""Calls while they are written: what is known of them before they are whole.

Only where a name comes first and then one JSON object, which most templates want: there, what the model has written of
the arguments is a beginning of their JSON. It is told as it stands, so all of it together is what the model wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgellm.text.calls.arguments import JsonArguments, skip
from edgellm.text.calls.syntax import CallSyntax, new_id, one_of


@dataclass
class OpenCall:
    """A call that has begun. arguments: as much of their JSON as there is."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=new_id)


class CallFollower:
    """Goes along with a text of calls that grows.

    calls:  those that have begun, in their order; the last one may grow.
    """

    def __init__(self, syntax: CallSyntax, names: Iterable[str]) -> None:
        self.calls: list[OpenCall] = []
        self._syntax, self._names = syntax, one_of(dict.fromkeys(names))
        self._at = 0  # so much of the text is known
        self._depth = 0  # of brackets in the arguments; 0 between calls
        self._in_string = self._is_escaped = self._is_lost = False

    @staticmethod
    def follows(syntax: CallSyntax) -> bool:
        """Whether calls in this syntax can be told before they are whole."""
        how = syntax.arguments
        return syntax.order == ("name", "arguments") and isinstance(how, JsonArguments) and not how.quoted

    def follow(self, text: str) -> None:
        """text: all of it, from the first call on."""
        while not self._is_lost and (self._go_on(text) if self._depth else self._begin(text)):
            pass

    def _begin(self, text: str) -> bool:
        """The next call, up to its arguments. False where more text is needed."""
        opening = self._syntax.again if self.calls else self._syntax.first
        at = None if opening is None else skip(text, self._at, opening)
        name = None if at is None else self._names.match(text, at)
        start = None if name is None else skip(text, name.end(), self._syntax.middle[0])
        start = None if start is None else skip(text, start, " ")
        if name is None or start is None or start == len(text):
            return False
        if text[start] != "{":
            self._is_lost = True
            return False
        self.calls.append(OpenCall(name[0], "{"))
        self._at, self._depth = start + 1, 1
        return True

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
        self.calls[-1].arguments += text[start : self._at]
        return self._depth == 0
