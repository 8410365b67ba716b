"""Calls in the syntax of any template: what the template writes is read, and what the syntax writes too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.text.calls import Call, CallSyntax, derived_syntax
from edgellm.text.calls.derive import _written
from edgellm.text.calls.plain import PLAIN, told_in_text
from edgellm.text.chat_template import ChatTemplate
from tests.text.calls.templates import TEMPLATES

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "names": {"type": "array"},
        "far": {"type": "boolean"}}},
    "get": {"type": "object", "properties": {"x": {"type": "number"}}},
    "no_arguments": {"type": "object", "properties": {}},
    "a.b-c_9": {"type": "object", "properties": {"text": {"type": "string"}}},
}  # fmt: skip
CALLS = [
    [Call("get_weather", {"city": "Paris", "days": 3}, "abcdef001")],
    [Call("get_weather", {"names": ["a", "b"], "far": True}, "abcdef002")],
    [Call("no_arguments", {}, "abcdef003")],
    [Call("get", {"x": -1.5}, "abcdef004")],
    [Call("a.b-c_9", {"text": "a line\nand é, {braces} 'and' more"}, "abcdef005")],
    [Call("get", {"x": 1}, "abcdef006"), Call("get_weather", {"city": "New York"}, "abcdef007")],
    [Call("no_arguments", {}, "abcdef008"), Call("no_arguments", {}, "abcdef009"), Call("get", {"x": 2}, "abcdef010")],
]


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def template(request) -> ChatTemplate:
    return template_of(TEMPLATES[request.param])


def meaning(calls: list[Call]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in calls]


def check(template: ChatTemplate, calls: list[Call]) -> None:
    syntax = template.call_syntax
    assert syntax is not None
    texts = [syntax.write(calls)] if len(calls) == 1 or syntax.again is not None else []
    rendered = _written(template, calls) if texts else None
    for text in [*texts, *([rendered] if rendered else [])]:
        found = syntax.read(text, SCHEMAS)
        assert found is not None, text
        assert meaning(found[0]) == meaning(calls) and not found[1].strip(), text
        if "id" in syntax.order:
            assert [call.id for call in found[0]] == [call.id for call in calls]
        assert syntax.trigger in text


@pytest.mark.parametrize("calls", CALLS)
def test_round_trip(template: ChatTemplate, calls: list[Call]) -> None:
    check(template, calls)


@settings(max_examples=20)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters='<>"\\')), number=st.integers(-(10**9), 10**9))
def test_any_text_and_number(template: ChatTemplate, text: str, number: int) -> None:
    stripped = text.strip()  # white space at the ends of a text is not kept by all templates
    check(template, [Call("get_weather", {"city": stripped or "a", "days": number}, "abcdef001")])


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_half_a_call_is_none(template: ChatTemplate, cut: float) -> None:
    syntax = template.call_syntax
    assert syntax is not None
    one = syntax.write(CALLS[0])
    end = one.index("Paris") + 5
    assert syntax.read(one[: int(end * cut)], SCHEMAS) is None
    assert syntax.read(one.replace("get_weather", "unknown"), SCHEMAS) is None
    assert syntax.read("Hello", SCHEMAS) is None


def test_calls_before_one_that_was_cut_count(template: ChatTemplate) -> None:
    """What there is of the last one stands behind them."""
    syntax = template.call_syntax
    assert syntax is not None
    if syntax.again is None:
        pytest.skip("it writes one call at most")
    cities = ("Oslo", "Rome", "Paris")
    calls = [Call("get_weather", {"city": city, "days": 3}, f"abcdef00{i}") for i, city in enumerate(cities)]
    text = syntax.write(calls)
    found = syntax.read(text[: text.index("Paris") + 3], SCHEMAS)
    assert found is not None
    assert meaning(found[0]) == meaning(calls[:2]) and found[1].endswith("Par")


def test_other_white_space_is_read() -> None:
    syntax = template_of(TEMPLATES["hermes"]).call_syntax
    assert syntax is not None
    loose = '<tool_call>{ "name":"get" ,\n "arguments" : {"x":1} }</tool_call>'
    loose += ' <tool_call>{"name": "get", "arguments": {}}'
    found = syntax.read(loose, SCHEMAS)
    assert found is not None and meaning(found[0]) == [("get", {"x": 1}), ("get", {})]


def test_templates_of_models(shared: Path) -> None:
    """Those that write calls of tools that they tell the model of."""
    known = {}
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = template_of(path.read_text("utf-8"))
        syntax = derived_syntax(template)
        if syntax is not None:
            known[path.stem] = syntax.trigger
            for calls in CALLS:
                check(template, calls)
    assert known == {
        "CohereForAI-c4ai-command-r-plus-tool_use": "Action:",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "<tool_call>",
        "Qwen-Qwen2.5-7B-Instruct": "<tool_call>",
        "Qwen-Qwen3-0.6B": "<tool_call>",
        "meta-llama-Llama-3.2-3B-Instruct": "{",
        "mistralai-Mistral-Nemo-Instruct-2407": "[TOOL_CALLS]",
        "openai-gpt-oss-120b": "to=functions.",
    }


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages[0].content }}",
        "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | length }}{% endfor %}",
    ],
)
def test_templates_that_write_no_calls(source: str) -> None:
    assert template_of(source).call_syntax is None


def test_calls_told_in_text() -> None:
    tools = [{"type": "function", "function": {"name": "get", "parameters": SCHEMAS["get"]}}]
    messages = [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": "", "tool_calls": [CALLS[3][0].as_message()]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    told = told_in_text(messages, tools, takes_system=True)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert json.dumps(tools[0]) in told[0]["content"]
    assert PLAIN.read(told[2]["content"], SCHEMAS) is not None and "tool_calls" not in told[2]
    results = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert told[3] == {"role": "user", "content": results}
    told = told_in_text(messages, tools, takes_system=False)
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[0]["content"].endswith("How much?") and json.dumps(tools[0]) in told[0]["content"]
    assert messages[1]["tool_calls"] and messages[0]["content"] == "How much?"  # as they were


def test_the_marks_may_be_missing() -> None:
    bare = PLAIN.bare
    assert bare is not None
    found = bare.read('{"name": "get", "arguments": {"x": 1}}', SCHEMAS)
    assert found is not None and meaning(found[0]) == [("get", {"x": 1})]
    llama = template_of(TEMPLATES["llama 3"]).call_syntax
    assert isinstance(llama, CallSyntax) and llama.bare is None
