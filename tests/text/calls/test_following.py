"""Calls are told while they are written, and all that is told of one is its arguments."""

from __future__ import annotations

import json

import pytest

from edgellm.text.calls import Call
from edgellm.text.calls.following import CallFollower
from edgellm.text.calls.plain import PLAIN
from edgellm.text.chat_template import ChatTemplate
from tests.text.calls.templates import TEMPLATES

SYNTAXES = {name: ChatTemplate(source).call_syntax for name, source in TEMPLATES.items()} | {"told in text": PLAIN}
FOLLOWED = {name: syntax for name, syntax in SYNTAXES.items() if syntax is not None and CallFollower.follows(syntax)}
CALLS = [
    Call("get_more", {"a": 'quoted " } ] \\', "b": [1, {"c": "}"}], "é": None}),
    Call("get", {}),
    Call("get", {"text": "</tool_call>\n"}),
]


def test_which_are_followed() -> None:
    assert {"hermes", "llama 3", "mistral", "mistral 3", "mistral 3 with ids", "told in text"} <= set(FOLLOWED)
    assert not {"arguments first", "quoted", "glm"} & set(FOLLOWED)


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_told(name: str, size: int) -> None:
    syntax = FOLLOWED[name]
    calls = CALLS if syntax.again is not None else CALLS[:1]
    text = syntax.write(calls).lstrip()
    follower = CallFollower(syntax, ["get", "get_more"])
    seen = [""] * len(calls)
    for n in range(0, len(text) + size, size):
        follower.follow(text[:n])
        for i, call in enumerate(follower.calls):
            assert call.arguments.startswith(seen[i])
            seen[i] = call.arguments
        assert all(call.is_whole for call in follower.calls[:-1])  # only the last one is being written
    assert all(call.is_whole for call in follower.calls)
    assert [call.name for call in follower.calls] == [call.name for call in calls]
    assert [json.loads(call.arguments) for call in follower.calls] == [call.arguments for call in calls]
    if syntax.order[0] != "arguments" and "id" in syntax.order[:-1]:  # one that comes behind the arguments is too late
        assert [call.id for call in follower.calls] == [call.id for call in calls]


def test_what_is_known_early() -> None:
    follower = CallFollower(PLAIN, ["get", "get_more"])
    text = '<tool_call>\n{"name": "get_more", "arguments": {"a": "on'
    for n in range(len(text)):
        follower.follow(text[:n])
        assert len(follower.calls) == (n > text.index('{"a"'))
    follower.follow(text)
    assert [(call.name, call.arguments) for call in follower.calls] == [("get_more", '{"a": "on')]


@pytest.mark.parametrize("text", ['{"name": "none", "arguments": {"a": 1}}', '{"name": "get", "arguments": "{}"}'])
def test_what_is_no_call_is_not_told(text: str) -> None:
    follower = CallFollower(PLAIN, ["get"])
    follower.follow("<tool_call>\n" + text)
    assert not follower.calls
