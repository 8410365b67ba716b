"""Fields that would be dropped are refused by their names; those that clients send are taken."""

from __future__ import annotations

from typing import Any

import pytest

from .running import Running

HI = [{"role": "user", "content": "a"}]
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PARAMETERS = {"type": "object", "properties": {}}
TOOL = {"name": "look", "parameters": PARAMETERS}
ANTHROPIC_TOOL = {"messages": HI, "max_tokens": 1, "tools": [{"name": "f", "input_schema": PARAMETERS}]}


def chat(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a", **message}]}


def tool(around: dict[str, Any], **inside: Any) -> dict[str, Any]:
    return {"messages": HI, "tools": [{"type": "function", "function": {**TOOL, **inside}, **around}]}


def called(around: dict[str, Any], **inside: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", **inside}, **around}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}, *HI]}


def blocks(*content: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}], "max_tokens": 2}


UNKNOWN = [
    (CHAT, chat(bogus=1), "unknown field messages.0.bogus"),
    (CHAT, chat(function_call={"name": "f"}), "messages.0.function_call is given"),
    (CHAT, called({"bogus": 1}), "unknown field messages.0.tool_calls.0.bogus"),
    (CHAT, called({}, bogus=1), "unknown field messages.0.tool_calls.0.function.bogus"),
    (CHAT, chat(role="wizard"), "messages.0.role is 'wizard'; expected one of system, developer, user"),
    (CHAT, chat(role=""), "messages.0.role is ''; expected one of"),
    (CHAT, chat(content=[{"type": "text", "text": "a", "bogus": 1}]), "unknown field messages.0.content.0.bogus"),
    (CHAT, chat(content=[{"type": "bogus"}]), "messages.0.content.0.type is 'bogus'"),
    (CHAT, chat(content=[{"text": "a"}]), "messages.0.content.0.type is missing"),
    (CHAT, tool({"bogus": 1}), "unknown field tools.0.bogus"),
    (CHAT, tool({}, bogus=1), "unknown field tools.0.function.bogus"),
    (CHAT, tool({}, strict="a"), "tools.0.function.strict is 'a'; expected true or false"),
    (CHAT, tool({}, description=5), "tools.0.function.description is 5; expected a text"),
    (CHAT, {"messages": HI, "documents": [{"text": "a"}]}, "documents is given, but this model's chat template"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs.mood is given, but"),
    (CHAT, {"messages": HI, "response_format": {}}, "response_format has no type; expected text, json_object or"),
    (RESPONSES, {"input": "a", "text": {"format": {"type": "bogus"}}}, "text.format.type is 'bogus'; expected text,"),
    (RESPONSES, {"input": "a", "stream_options": {"bogus": 1}}, "unknown field stream_options.bogus"),
    (
        RESPONSES,
        {"input": "a", "text": {"verbosity": "bogus"}},
        'text.verbosity is "bogus"; expected "low", "medium" or "high"',
    ),
    (RESPONSES, {"input": "a", "reasoning": {"summary": "bogus"}}, 'reasoning.summary is "bogus"; expected "auto"'),
    (RESPONSES, {"input": [{"role": "user", "content": "a", "bogus": 1}]}, "unknown field input.0.bogus"),
    (RESPONSES, {"input": [{"role": "wizard", "content": "a"}]}, "input.0.role is 'wizard'"),
    (RESPONSES, {"input": "a", "tools": [{"type": "function", **TOOL, "bogus": 1}]}, "unknown field tools.0.bogus"),
    (RESPONSES, {"input": "a", "tools": [{"type": "function", **TOOL, "strict": "a"}]}, "strict is 'a'"),
    (MESSAGES, blocks({"type": "text", "text": "a", "bogus": 1}), "unknown field messages.0.content.0.bogus"),
    (MESSAGES, {"messages": HI, "max_tokens": 2, "tools": [{"name": "f", "bogus": 1}]}, "unknown field tools.0.bogus"),
    (MESSAGES, {"messages": HI, "max_tokens": 2, "thinking": {"type": "disabled", "a": 1}}, "unknown field thinking.a"),
    (MESSAGES, {"messages": HI, "max_tokens": 2, "output_config": {"a": 1}}, "unknown field output_config.a"),
    (CHAT, chat(role="m"), "messages.0.role is 'm'; expected one of"),  # a word of the template, and no role in it
    (CHAT, chat(name=5), "messages.0.name is 5; expected a text"),
    (
        CHAT,
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": ["a"]}]},
        "messages.0.tool_call_id is ['a']; expected a text",
    ),
    (CHAT, called({"id": 5}), "messages.0.tool_calls.0.id is 5; expected a text"),
    (CHAT, called({"type": "custom"}), "messages.0.tool_calls.0.type is 'custom'; expected function"),
    (CHAT, tool({}, parameters=[]), "tools holds look, whose parameters are []; expected a JSON schema of an object"),
    (
        CHAT,
        tool({}, parameters={"required": None}),
        "tools holds look with parameters whose required is None; expected a list of names of properties",
    ),
    (CHAT, {**tool({}), "tool_choice": {"type": "function", "function": {"name": ["look"]}}}, "tool_choice is {'type'"),
    (
        CHAT,
        {"messages": HI, "response_format": {"type": 5}},
        "response_format holds a JSON schema whose type is 5; expected one of string, number",
    ),
    (
        RESPONSES,
        {
            "input": "a",
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "a",
                    "schema": {"type": "object", "properties": {"a": {"type": "array", "items": {"format": []}}}},
                }
            },
        },
        "text.format holds a JSON schema whose properties.a.items.format is []; expected a text",
    ),
    (
        RESPONSES,
        {"input": "a", "tools": [{"type": "function", **TOOL}], "tool_choice": {"type": "function", "name": {}}},
        "tool_choice is {'type'",
    ),
    (RESPONSES, {"input": [{"type": "reasoning", "content": 5}]}, "input.0.content is 5; expected a list of parts"),
    (
        RESPONSES,
        {"input": [{"type": "reasoning", "summary": [{"text": 5}]}]},
        "input.0.summary.0.text is 5; expected a",
    ),
    (RESPONSES, {"input": [{"type": "reasoning", "bogus": 5}]}, "unknown field input.0.bogus"),
    (
        MESSAGES,
        blocks({"type": "tool_result", "tool_use_id": "a", "is_error": "false"}),
        "messages.0.content.0.is_error is 'false'; expected true or false",
    ),
    (MESSAGES, blocks({"type": "tool_result", "tool_use_id": "a", "content": {}}), "messages.0.content.0.content.0 is"),
    (
        MESSAGES,
        {"messages": HI, "max_tokens": 2, "tools": [{"name": "f", "description": []}]},
        "tools.0.description is []; expected a text",
    ),
    (
        MESSAGES,
        {"messages": HI, "max_tokens": 2, "tools": [{"name": "f", "input_schema": False}]},
        "tools.0.input_schema is False; expected a JSON schema",
    ),
    (
        MESSAGES,
        {"messages": HI, "max_tokens": 2, "output_config": {"effort": "lots"}},
        "output_config.effort is 'lots'; expected one of low, medium, high",
    ),
    ("/api/chat", chat(role="wizard"), "messages.0.role is 'wizard'"),
    ("/api/generate", {"prompt": "a", "system": "b", "raw": True}, "system is given, but raw is true"),
]


@pytest.mark.parametrize(("path", "body", "told"), UNKNOWN)
def test_what_would_be_dropped_is_refused(small: Running, path: str, body: dict[str, Any], told: str) -> None:
    found = small.post(path, {"model": "tiny", **body})
    assert found.status_code == 400
    error = found.json()["error"]
    assert told in (error if isinstance(error, str) else error["message"])


SENT = [
    (CHAT, called({"index": 0}, parsed_arguments={})),
    (CHAT, chat(name="ann", refusal=None, audio=None, function_call=None, annotations=[])),
    (CHAT, chat(content=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])),
    (CHAT, tool({}, strict=True, description=None)),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"enable_thinking": False}}),  # which is so anyway
    (RESPONSES, {"input": "a", "text": {"verbosity": "low"}, "reasoning": {"summary": "auto"}}),
    (RESPONSES, {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}]}),
    (
        RESPONSES,
        {"input": "a", **dict.fromkeys(("conversation", "max_tool_calls", "prompt", "moderation", "metadata"))},
    ),
    (CHAT, {"messages": HI, "verbosity": "low", **dict.fromkeys(("audio", "functions", "prediction", "moderation"))}),
    (MESSAGES, blocks({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}})),
    (MESSAGES, {"messages": HI, "max_tokens": 2, "output_config": {"effort": "low"}}),
    (
        CHAT,
        {
            **tool({}),
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]},
            },
        },
    ),
    (
        RESPONSES,
        {
            "input": "a",
            "tools": [{"type": "function", "name": "f", "parameters": None}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), SENT)
def test_what_clients_send_is_taken(small: Running, path: str, body: dict[str, Any]) -> None:
    limit = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}[path]
    found = small.post(path, {"model": "tiny", **body, limit: 2})
    assert found.status_code == 200, found.text


TOLD = [
    (CHAT, {"messages": HI, "Temperature": 1}, "unknown field Temperature"),
    (CHAT, {"messages": HI, "str": 1}, "unknown field str"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]},
     "messages.0.content is 5; expected a text or a list"),
    (CHAT, {"messages": [{"role": "user", "content": {"a": None}}]},
     'messages.0.content is {"a": null}; expected a text or a list'),
    (CHAT, {"messages": [{"content": "a"}]}, "messages.0.role is missing"),
    (CHAT, {"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0 is 5; expected an object"),
    (CHAT, {"messages": HI, "temperature": True}, "temperature is true; expected a number"),
    (CHAT, {"messages": HI, "stop": {"a": None}}, 'stop is {"a": null}; expected a text or a list'),
    (CHAT, {"messages": None}, "messages is null; expected a list"),
    ("/v1/completions", {"prompt": None},
     "prompt is null; expected a text or a list"),
    (MESSAGES, {"messages": HI, "max_tokens": 1, "container": "a"}, 'container is "a"; expected null, as this '
     "server has no such thing: leave it out"),
    (RESPONSES + "/input_tokens", {}, "input is empty; expected at least one message"),
    (RESPONSES + "/input_tokens", {"input": "a", "temperature": 1}, "unknown field temperature"),
    (RESPONSES + "/input_tokens", {"input": "a", "truncation": "auto"}, 'truncation is "auto"; expected "disabled"'),
    (RESPONSES + "/input_tokens", {"input": 5}, "input is 5; expected a text or a list"),
    (RESPONSES, {"input": []}, "input is empty; expected at least one message"),
    (RESPONSES, {"instructions": "a", "input": [{"role": "user", "content": {"a": 1}}]},
     "input.0.content is {'a': 1}; expected a text or a list of parts"),
    (RESPONSES, {"instructions": "a", "input": [{"role": "user", "content": [{"type": "input_image"}]}]},
     "input.0.content.0.type is 'input_image'; this server reads parts of the type text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
     "messages.0.content.0.text is missing; expected a text"),
    (CHAT, {"messages": []}, "messages is []; expected a list with at least 1 item"),
    (CHAT, {"messages": HI, "n": 0}, "n is 0; expected a number of at least 1"),
    (CHAT, {"messages": HI, "n": 500}, "n is 500; expected a number of at most 128"),
    (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, "stream_options is given, but stream is not "
     "true; set it, or leave stream_options out"),
    ("/v1/completions", {"prompt": "a", "return_progress": True}, "return_progress is given, but stream is not true; "
     "set it, or leave return_progress out"),
    (CHAT, {**tool({}), "tool_choice": {"type": "function"}}, "tool_choice is {'type': 'function'}; expected "
     '{"type": "function", "function": {"name": ...}} with a tool: look'),
    (MESSAGES, {**ANTHROPIC_TOOL, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name is 'g'; expected "
     "the name of a tool: f"),
    (MESSAGES, {**ANTHROPIC_TOOL, "tool_choice": {}}, "tool_choice.type is missing; expected auto, any, none or tool"),
    (MESSAGES, {**ANTHROPIC_TOOL, "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
     "tool_choice.disable_parallel_tool_use is 1; expected true or false"),
    (MESSAGES, {"messages": HI, "max_tokens": 1, "thinking": {"type": "adaptive", "budget_tokens": 9}},
     "unknown field thinking.budget_tokens"),
    (MESSAGES, {"messages": HI, "max_tokens": 1, "thinking": {}},
     "thinking.type is missing; expected enabled, disabled or adaptive"),
    ("/v1/embeddings", {"input": [10**9], "pooling": "mean"}, "input holds 1000000000; the ids of this vocabulary go "
     "from 0 to 319"),
    (CHAT, {"messages": HI, "reasoning_effort": "high"}, "reasoning_effort asks for a thought, but this model's chat "
     "template knows of no thoughts; leave reasoning_effort out"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "told"), TOLD)
def test_one_line_says_what_is_wrong_in_the_words_of_json(small: Running, path: str, body: Any, told: str) -> None:
    found = small.post(path, {"model": "tiny", **body})
    assert found.status_code == 400
    assert found.json()["error"]["message"] == told
