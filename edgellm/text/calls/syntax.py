"""How calls of tools are written: one description, from which both a grammar and a parser come."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.text.calls.arguments import JsonArguments, ListedArguments, skip

ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # what Mistral's templates insist on, and others take
ID = re.compile(r"[\w-]+")  # as models write them


def new_id() -> str:
    """An id for a call that has none."""
    return "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH))


@dataclass(frozen=True)
class Call:
    """A tool that a model wants to be called.

    arguments:  by name, as JSON has them.
    id:         tells calls apart; results are given back under it.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=new_id)

    def as_message(self) -> dict[str, Any]:
        """As it stands under "tool_calls" in a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class CallSyntax:
    """How a template writes calls: first CALL (again CALL)* last.

    order:   what a call consists of: "name", "arguments" and perhaps "id", in their order.
    middle:  the texts between those.
    again:   None where a message has one call at most.
    """

    first: str
    order: tuple[str, ...]
    middle: tuple[str, ...]
    again: str | None
    last: str
    arguments: JsonArguments | ListedArguments

    @property
    def trigger(self) -> str:
        """The text by which a call is known as soon as it comes."""
        return self._begins[0]

    @property
    def is_anchored(self) -> bool:
        """The trigger is one only at the beginning of an answer."""
        return self._begins[1]

    @property
    def _begins(self) -> tuple[str, bool]:
        text = self.first.strip()
        if tag := re.match(r"<[^<>\s]{2,}>|\[[A-Z_/]{3,}\]", text):
            return tag[0], False
        brace = re.search(r"[\[{(]", text)
        if brace is None:
            return text, not text
        if brace.start() == 0:
            return text[0], True
        return text[: brace.start()].split("\n")[0].strip(), False

    @property
    def bare(self) -> CallSyntax | None:
        """The same without the marks around, as small models often write it; None where that could be any text."""
        first = self.first.strip().removeprefix(self.trigger).lstrip()
        if self.is_anchored or not first.startswith("{"):
            return None
        return replace(self, first=first, again=None, last=self.last[: self.last.rfind("}") + 1].strip())

    def write(self, calls: Sequence[Call]) -> str:
        """The calls as a model is to write them."""
        return self.first + (self.again or "").join(map(self._write_one, calls)) + self.last

    def _write_one(self, call: Call) -> str:
        values = {"name": call.name, "id": call.id, "arguments": self.arguments.write(call.arguments)}
        text = values[self.order[0]]
        for between, part in zip(self.middle, self.order[1:], strict=True):
            text += between + values[part]
        return text

    def read(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[list[Call], str] | None:
        """The calls at the beginning of a text, and what follows them; None when there are none that are whole.

        White space may differ from what the template writes, and the very end may be missing. A call that is not whole,
        as the last of an answer that was cut, counts as what follows.
        schemas: of the arguments of each tool, by its name; nothing else is a tool.
        """
        at = skip(text, 0, self.first)
        calls: list[Call] = []
        end = 0
        while at is not None and (found := self._read_one(text, at, schemas)) is not None:
            calls.append(found[0])
            end = found[1]
            at = None if self.again is None else skip(text, end, self.again)
        if not calls:
            return None
        behind = skip(text, end, self.last)
        if behind is None and at is not None:
            return calls, text[end:]
        if behind is None:
            rest, last = "".join(text[end:].split()), "".join(self.last.split())
            return (calls, "") if last.startswith(rest) else None
        return calls, text[behind:]

    def may_become_call(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a text that was cut off may be the beginning of a call, the first one or a further one."""
        for opening in (self.first, self.again or ""):
            compact, begun = "".join(opening.split()), "".join(text.split())
            if begun and compact.startswith(begun):
                return True
            at = skip(text, 0, opening) if opening else None
            if at is not None:
                rest = text[at:]
                return self.order[0] != "name" or any(
                    rest.startswith(name) or name.startswith(rest) for name in schemas
                )
        return False

    def read_first(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> Call | None:
        """The first call of a text that may go on; None until what ends calls, or leads to another one, has come."""
        at = skip(text, 0, self.first)
        found = None if at is None else self._read_one(text, at, schemas)
        if found is None:
            return None
        call, end = found
        behind = [what for what in (self.again, self.last) if what is not None]
        return call if any(skip(text, end, what) is not None for what in behind) else None

    def _read_one(self, text: str, at: int, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[Call, int] | None:
        values: dict[str, Any] = {}
        for part, before in zip(self.order, ("", *self.middle), strict=True):
            start = skip(text, at, before)
            if start is None:
                return None
            if part == "arguments":
                found = self.arguments.read(text, start, schemas.get(values.get("name", ""), {}))
                if found is None:
                    return None
                values[part], at = found
            else:
                match = (one_of(schemas) if part == "name" else ID).match(text, start)
                if match is None:
                    return None
                values[part], at = match[0], match.end()
        return Call(**values), at


def one_of(names: Mapping[str, Any]) -> re.Pattern[str]:
    """The longest first, for one name may begin with another."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
