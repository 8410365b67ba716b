"""The messages of a chat, as templates want them: copies made of plain values, checked once.

Follows `transformers`: keys whose value is None are dropped, and reasoning stands under each of its names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from edgellm.errors import UsageError, shown
from edgellm.text.provenance import written

DEEPEST = 100  # lists within dicts within lists in a chat
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for it in a message, the standard one first
ASSISTANTS = ("assistant", "model")  # roles in which a model has answered
MEDIA = ("image", "image_url", "audio", "audio_url", "input_audio", "input_image", "video", "video_url", "file")

# A role of this list is a word that a template may build a control token from, as in '<|' + role + '|>'.
ROLES = ("system", "user", "assistant", "tool", "developer", "model", "function", "ipython", "observation",
         "environment", "context", "critic", "documents")  # fmt: skip


def plain(value: Any, depth: int = 0) -> Any:
    """A copy made of JSON types only, so that a template meets no object with methods of its own.

    Message objects, dataclasses and what has a `model_dump` method, become dicts.
    """
    if depth > DEEPEST:
        raise UsageError(f"the chat nests lists and dicts more than {DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump(), depth + 1)
    raise UsageError(f"the chat holds a {type(value).__name__}; expected texts, numbers, lists and dicts")


def plain_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages as templates want them. Raises UsageError, with the place of the message that cannot be taken."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise UsageError(f"the messages are a {type(messages).__name__}; expected a list of dicts")
    found = [_plain_message(n, message) for n, message in enumerate(messages)]
    check_calls(found)
    return found


def call_of(call: Any, place: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call in a message, which may stand as a text of JSON.

    place:  of the call in the chat, such as messages.1.tool_calls.0. Raises UsageError for what is no call.
    """
    function = call
    if isinstance(call, Mapping) and "function" in call:
        function, place = call["function"], f"{place}.function"
    if not isinstance(function, Mapping):
        raise UsageError(f"{place} is {shown(function)}; expected a name and arguments", parameter=place)
    name = function.get("name")
    if not isinstance(name, str):
        what = "is missing" if name is None else f"is {shown(name)}"
        raise UsageError(f"{place}.name {what}; expected the name of a function", parameter=f"{place}.name")
    return name, arguments_of(function.get("arguments"), f"{place}.arguments")


def arguments_of(given: Any, place: str) -> dict[str, Any]:
    """The arguments of a call as JSON has them; none at all where nothing is given. Raises UsageError."""
    found = given
    if isinstance(given, str):
        from edgellm.text.calls.values import decoded  # seldom needed

        try:
            found = decoded(given) if given.strip() else None
        except (ValueError, RecursionError):
            found = given
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise UsageError(
            f'{place} is {shown(given)}; expected a JSON object, such as {{"city": "Rome"}}', parameter=place
        )
    return dict(found)


def check_contents(messages: Iterable[Any]) -> None:
    """Raises UsageError for a message that says, thinks and calls nothing, with its place."""
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("content") is not None:
            continue
        if isinstance(message.get("role"), str) and not any(map(message.get, ("tool_calls", *REASONING))):
            place = f"messages.{n}.content"
            raise UsageError(f"{place} is missing; expected a text or a list of parts", parameter=place)


def check_calls(messages: Iterable[Any]) -> None:
    """Raises UsageError for a call in a message that is none, with its place."""
    for n, message in enumerate(messages):
        if isinstance(message, Mapping):
            calls_of(message, f"messages.{n}")


def calls_of(message: Mapping[str, Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls in a message. Raises UsageError for what is none.

    place:  of the message in the chat, such as messages.1.
    """
    calls, place = message.get("tool_calls"), f"{place}.tool_calls"
    if calls is None:
        return []
    if not isinstance(calls, (list, tuple)):
        raise UsageError(f"{place} is {shown(calls)}; expected a list of calls", parameter=place)
    return [call_of(call, f"{place}.{number}") for number, call in enumerate(calls)]


def check_objects(messages: Iterable[Mapping[str, Any]]) -> None:
    """Raises UsageError for a content that is an object, with its place."""
    for n, message in enumerate(messages):
        if isinstance(content := message.get("content"), Mapping):
            place = f"messages.{n}.content"
            raise UsageError(
                f'{place} is {shown(content)}; expected a text or a list of parts like {{"type": "text", "text": ...}}',
                parameter=place,
            )


def holds_calls(messages: Iterable[Any]) -> bool:
    """Whether tools were called in a chat."""
    return any(isinstance(message, Mapping) and message.get("tool_calls") for message in messages)


def holds_parts(messages: list[dict[str, Any]]) -> bool:
    """Whether a content is a list of parts, such as {"type": "text", "text": ...}."""
    return any(_is_parts(message.get("content")) for message in messages)


def joined_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with each list of text parts as one text, a line for each, for templates that know texts only."""
    return [
        {**message, "content": "\n".join(map(_text_of, message["content"]))}
        if _is_parts(message.get("content"))
        else message
        for message in messages
    ]


def _plain_message(n: int, given: Any) -> dict[str, Any]:
    message = plain(given)
    if not isinstance(message, dict):
        raise UsageError(f"message {n} is {given!r:.80}; expected a dict with 'role' and 'content'")
    message = {key: value for key, value in message.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise UsageError(f"message {n} has no 'role'; expected a text, such as 'user'")
    if not isinstance(role, str):
        raise UsageError(f"message {n}: 'role' is a {type(role).__name__}; expected a text, such as 'user'")
    if not isinstance(content, (str, list, tuple, dict, type(None))):
        raise UsageError(f"message {n}: 'content' is a {type(content).__name__}; expected a text or a list of parts")
    if isinstance(content, (list, tuple)):
        _check_parts(n, content, role)
    if role in ROLES:
        message["role"] = written(role)
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None and not message.get("tool_calls"):
        message.setdefault("content", "")  # templates count on one
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _check_parts(n: int, content: Iterable[Any], role: str | None) -> None:
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type")
            if kind in MEDIA:
                raise UsageError(f"message {n} holds a part of the type {kind!r}; edgellm reads texts only")
            if kind == "text" and not isinstance(part.get("text"), str):
                raise UsageError(f"message {n}: a part of the type 'text' has no text under 'text'")
        elif not isinstance(part, str) and role != "tool":
            raise UsageError(
                f"message {n}: 'content' holds a {type(part).__name__}; expected parts like "
                '{"type": "text", "text": "..."}'
            )


def _is_parts(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and all(
        isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in content
    )


def _text_of(part: Any) -> str:
    return part if isinstance(part, str) else part["text"]
