"""The values of a record, checked as they are asked for: a stranger's file holds anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgellm.errors import FormatError, UsageError, shown
from edgellm.formats.strict_json import parse
from edgellm.text.messages import ROLES, calls_of
from edgellm.train.data.config import RENDERED
from edgellm.train.data.files.record import is_too_deep

OTHER_NAMES = {"human": "user", "bot": "assistant", "gpt": "assistant", "chatgpt": "assistant", "ai": "assistant"}
YES = {
    "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False,
    "1.0": True, "0.0": False,  # as tables have them whose column has gaps
}  # fmt: skip


class Values:
    """The values of one record, by key. What is wrong is a UsageError that names the key.

    A list or an object may be given as a text of JSON, which is all that a field of a CSV file can hold.

    is_row:  whether they are such fields: only there may messages be given so where a text could be meant too.
    """

    def __init__(self, values: Mapping[str, Any], is_row: bool = False) -> None:
        self._values = values
        self._is_row = is_row

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise _wrong(key, value, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if key in self else None

    def objects(self, key: str) -> list[dict[str, Any]]:
        """A list of objects, not empty."""
        value = self._unpacked(key)
        if not isinstance(value, list):
            raise _wrong(key, value, "a list of objects")
        for n, item in enumerate(value):
            if not isinstance(item, dict):
                raise UsageError(f"{key}[{n}] is {shown(item)}; expected an object")
        if not value:
            raise UsageError(f"{key!r} is an empty list")
        return value

    def messages(self, key: str) -> list[dict[str, Any]]:
        """Messages of a chat; what each of them holds is checked where they are rendered."""
        found = self.objects(key)
        for n, message in enumerate(found):
            if not isinstance(message.get("role"), str):
                raise UsageError(f"{key}[{n}] has no 'role'; expected a text, such as 'user'")
            _check_role(f"{key}[{n}]", message["role"])
            _check_calls(f"{key}[{n}]", message)
            if message.get("content") is None and not message.get("tool_calls"):
                raise UsageError(f"{key}[{n}] has no 'content'; expected a text")
            _check_weight(f"{key}[{n}]", message.get("weight"))
        return found

    def text_or_messages(self, key: str) -> str | list[dict[str, Any]]:
        value = self._values.get(key)
        if isinstance(value, str) and not (self._is_row and _are_messages(self._unpacked(key))):
            return value
        if not isinstance(value, (str, list)):
            raise _wrong(key, value, "a text or a list of messages")
        return self.messages(key)

    def others(self, *keys: str) -> dict[str, Any]:
        """All values but those of some keys, as they are."""
        return {key: value for key, value in self._values.items() if key not in keys}

    def tools(self) -> list[dict[str, Any]] | None:
        """JSON schemas, or None when there are none."""
        return self.objects("tools") if "tools" in self and self._unpacked("tools") != [] else None

    def variables(self) -> dict[str, Any]:
        """What a chat is to tell its template."""
        key = "chat_template_kwargs"
        found = self._unpacked(key) if key in self else {}
        if not isinstance(found, dict):
            raise _wrong(key, found, "an object")
        if taken := [name for name in RENDERED if name in found]:
            raise UsageError(f"{key!r} holds {taken[0]!r}, which the template is told anyway")
        return found

    def optional_number(self, key: str) -> float | None:
        """A finite number; in a CSV file it is a text."""
        value = self._values.get(key)
        if value is None:
            return None
        try:
            found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            raise _wrong(key, value, "a number")
        return found

    def yes_or_no(self, key: str) -> bool:
        value = self._values.get(key)
        known = YES.get(str(value).lower()) if isinstance(value, (bool, int, float, str)) else None
        if known is None:
            raise _wrong(key, value, "true or false")
        return known

    def _unpacked(self, key: str) -> Any:
        value = self._values.get(key)
        if not isinstance(value, str):
            return value
        try:
            found = parse(value.encode("utf-8", "surrogatepass"))
        except FormatError:
            return value
        return value if is_too_deep(found) else found


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def _check_role(place: str, role: str) -> None:
    """A template passes over a role that it does not know, or writes a turn that no model has seen."""
    if role in ROLES or role.startswith("document"):  # Granite's are numbered
        return
    word = role.strip().lower()
    meant = word if word in ROLES else OTHER_NAMES.get(word)
    expected = repr(meant) if meant else "one of system, user, assistant, tool, developer"
    raise UsageError(f"{place} has the role {shown(role)}; expected {expected}")


def _check_calls(place: str, message: Mapping[str, Any]) -> None:
    for number, (_, arguments) in enumerate(calls_of(message, place)):
        if is_too_deep(arguments):
            raise UsageError(f"{place}.tool_calls.{number} has arguments that are nested too deeply")


def _check_weight(place: str, weight: Any) -> None:
    """An answer is learnt or not; nothing is learnt by half."""
    if weight is not None and (type(weight) not in (int, float) or weight not in (0, 1)):
        raise UsageError(f"{place}: weight is {shown(weight)}; expected 0 or 1")


def _wrong(key: str, value: Any, expected: str) -> UsageError:
    if value is None:
        return UsageError(f"{key!r} has no value; expected {expected}")
    return UsageError(f"{key!r} is {shown(value)}; expected {expected}")
