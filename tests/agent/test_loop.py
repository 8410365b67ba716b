"""The loop of tools, with a model that says what the test tells it to."""

from __future__ import annotations

from typing import Any

import pytest

import edgellm
from edgellm.errors import UsageError
from edgellm.text.calls import Call


class Answer:
    def __init__(self, content: str, calls: list[Call]) -> None:
        self.content, self.tool_calls = content, calls
        self.message = {"role": "assistant", "content": content, "tool_calls": [call.as_message() for call in calls]}

    def __iter__(self):
        return iter([self.content])


class Model:
    """Says one thing after the other; keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[list[dict[str, Any]], str]] = []

    def chat(self, messages, tools, tool_choice, **keywords):
        self.asked.append((list(messages), tool_choice))
        return self._answers.pop(0) if tool_choice != "none" else Answer("enough", [])


def add(a: int, b: int) -> int:
    return a + b


def divide(a: int, b: int) -> float:
    return a / b


async def later(a: int) -> int:
    return a


ASKED = [{"role": "user", "content": "2 + 3?"}]


def test_calls_and_results() -> None:
    calls = [Call("add", {"a": 2, "b": 3}, "id1"), Call("divide", {"a": 1, "b": 0}, "id2"), Call("add", {"a": 1})]
    model = Model(Answer("Let me see.", calls), Answer("It is 5.", []))
    run = edgellm.run_tools(model, ASKED, [add, divide])
    results = [message for message in run.messages if message["role"] == "tool"]
    assert results[0] == {"role": "tool", "tool_call_id": "id1", "name": "add", "content": "5"}
    assert results[1]["content"] == "error: ZeroDivisionError: division by zero"
    assert results[2]["content"].startswith("error: TypeError")
    assert run.text == "It is 5." and run.calls[0][1] == "5"
    assert [message["role"] for message in run.messages] == ["user", "assistant", "tool", "tool", "tool", "assistant"]
    assert model.asked[1][0] == run.messages[:-1] and ASKED == [{"role": "user", "content": "2 + 3?"}]


def test_who_says_no_is_heard() -> None:
    model = Model(Answer("", [Call("add", {"a": 2, "b": 3})]), Answer("Well.", []))
    run = edgellm.run_tools(model, ASKED, [add], confirm=lambda call: False)
    assert run.calls[0][1] == "error: the user refused this call"


def test_a_model_that_never_stops_calling_has_to_say_something_at_last() -> None:
    model = Model(*[Answer("", [Call("add", {"a": 1, "b": 1})]) for _ in range(9)])
    run = edgellm.run_tools(model, ASKED, [add], max_rounds=3)
    assert run.text == "enough" and len(run.calls) == 3 and [choice for _, choice in model.asked][-1] == "none"


def test_a_call_that_must_come_must_come_once() -> None:
    model = Model(Answer("", [Call("add", {"a": 1, "b": 1})]), Answer("2", []))
    edgellm.run_tools(model, ASKED, [add], tool_choice="required")
    assert [choice for _, choice in model.asked] == ["required", "auto"]


def test_tools_that_others_call() -> None:
    schema = {"name": "far", "parameters": {"type": "object", "properties": {}}}
    model = Model(Answer("", [Call("far", {})]), Answer("done", []))
    run = edgellm.run_tools(model, ASKED, [schema], call=lambda call: {"called": call.name})
    assert run.calls[0][1] == '{"called": "far"}'
    with pytest.raises(UsageError, match="nothing that calls it"):
        edgellm.run_tools(model, ASKED, [schema])


def test_a_function_that_gives_no_result_yet() -> None:
    with pytest.raises(UsageError, match="async"):
        edgellm.run_tools(Model(Answer("", [Call("later", {"a": 1})])), ASKED, [later])
