"""Chats in OpenAI's shapes: the official client's own types read them, and its words mean here what they mean there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgellm.errors import UsageError
from edgellm.text.chat_template import ChatTemplate
from tests.engine.test_asking import ASKED, TOOLS
from tests.text.calls.templates import TEMPLATES
from tests.text.test_reasoning import TEMPLATES as THINKING

OFTEN = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture
def chatty(model):
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    return model


def as_openai(kind: str, found: dict[str, Any]) -> Any:
    """What the official client makes of it, which is strict here: nothing more, and nothing of another type."""
    types = pytest.importorskip("openai.types.chat", reason="the official client is the judge; it is not installed")
    return getattr(types, kind).model_validate(found, strict=True)


def joined(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_completion(chatty) -> None:
    found = chatty.openai_chat(ASKED, **OFTEN)
    read = as_openai("ChatCompletion", json.loads(json.dumps(found)))
    plain = chatty.chat(ASKED, **OFTEN)
    assert read.choices[0].message.content == plain.text and read.choices[0].message.role == "assistant"
    assert read.choices[0].finish_reason == "length" and found["object"] == "chat.completion"
    assert read.usage.prompt_tokens == plain.stats.n_prompt_tokens and read.usage.completion_tokens == 12
    assert read.usage.total_tokens == read.usage.prompt_tokens + 12 and read.model == chatty.path.stem
    assert chatty.openai_chat(ASKED, model="mine", **OFTEN)["model"] == "mine"


@pytest.mark.parametrize("n", [1, 3])
def test_chunks_make_the_completion(chatty, n: int) -> None:
    asked = {**OFTEN, "temperature": 1.0, "seed": 3, "n": n}
    whole = chatty.openai_chat(ASKED, **asked)
    chunks = list(chatty.openai_chat(ASKED, stream=True, stream_options={"include_usage": True}, **asked))
    for chunk in chunks:
        as_openai("ChatCompletionChunk", json.loads(json.dumps(chunk)))
    assert len({chunk["id"] for chunk in chunks}) == 1 and {c["object"] for c in chunks} == {"chat.completion.chunk"}
    for index, choice in enumerate(whole["choices"]):
        assert joined(chunks, index) == choice["message"]["content"] and choice["index"] == index
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(reasons) == sorted(choice["finish_reason"] for choice in whole["choices"])
    assert (
        chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    )
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "usage" not in next(iter(chatty.openai_chat(ASKED, stream=True, **asked)))


def test_who_stops_reading_ends_the_answers(chatty) -> None:
    chunks = chatty.openai_chat(ASKED, stream=True, n=2, temperature=1.0, seed=1, max_tokens=500)
    for _ in range(4):
        next(chunks)
    chunks.close()
    chatty._scheduler.update_requests()
    assert not chatty._scheduler._requests


def test_log_probabilities(chatty) -> None:
    asked = {**OFTEN, "logprobs": True, "top_logprobs": 2}
    found = as_openai("ChatCompletion", chatty.openai_chat(ASKED, **asked)).choices[0].logprobs.content
    plain = chatty.chat(ASKED, logprobs=2, **OFTEN)
    assert plain.text is not None and [one.logprob for one in found] == [one.logprob for one in plain.logprobs]
    assert [len(one.top_logprobs) for one in found] == [2] * 12
    text = b"".join(bytes(one.bytes) for one in found).decode(errors="replace")
    assert text == plain.text
    streamed = [
        one
        for chunk in chatty.openai_chat(ASKED, stream=True, **asked)
        for choice in chunk["choices"]
        for one in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [one["logprob"] for one in streamed] == [one.logprob for one in found]


def test_calls(chatty) -> None:
    asked = {"temperature": 1.0, "tools": TOOLS, "max_tokens": 400, "extra_body": {"top_k": 0, "min_p": 0.0}}
    for seed in range(30):
        found = chatty.openai_chat(ASKED, tool_choice="required", seed=seed, **asked)
        if found["choices"][0]["finish_reason"] == "tool_calls":
            break
    message = as_openai("ChatCompletion", found).choices[0].message
    assert message.content is None and isinstance(json.loads(message.tool_calls[0].function.arguments), dict)
    chunks = list(chatty.openai_chat(ASKED, tool_choice="required", seed=seed, stream=True, **asked))
    parts = [call for chunk in chunks for c in chunk["choices"] for call in c["delta"].get("tool_calls", ())]
    calls: list[list[dict[str, Any]]] = []
    for part in parts:
        if "id" in part:
            calls.append([])
        calls[part["index"]].append(part["function"])
    assert [(call[0]["name"], json.loads("".join(part["arguments"] for part in call))) for call in calls] == [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in found["choices"][0]["message"]["tool_calls"]
    ]
    one = chatty.openai_chat(ASKED, tool_choice="required", seed=seed, parallel_tool_calls=False, **asked)
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1
    # What came is taken back, with its arguments as a text, and the result finds the name of its tool.
    message = found["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    developer = {"role": "developer", "content": "Be brief."}
    assert chatty.openai_chat([developer, *ASKED, message, result], **OFTEN)["choices"]


def test_arguments_of_calls_come_as_they_are_written(chatty) -> None:
    schema = {"type": "object", "properties": {"note": {"type": "string", "minLength": 20, "maxLength": 20}},
              "required": ["note"], "additionalProperties": False}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "write", "parameters": schema}}]
    asked = {"temperature": 1.0, "tools": tools, "tool_choice": "required", "max_tokens": 200, "n": 2, "seed": 1}
    n_parts = [0, 0]
    for chunk in chatty.openai_chat(ASKED, stream=True, **asked):
        for choice in chunk["choices"]:
            n_parts[choice["index"]] += "tool_calls" in choice["delta"]
    assert min(n_parts) > 10


def test_thoughts_stand_beside_the_answer(model) -> None:
    model.chat_template = ChatTemplate(THINKING["empty"][0])
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"response_format": form, "max_tokens": 60, "seed": 1}
    message = model.openai_chat(ASKED, reasoning_effort="none", **asked)["choices"][0]["message"]
    assert json.loads(message["content"])["a"] in (1, 2) and "reasoning_content" not in message
    model.chat_template = ChatTemplate(THINKING["stripped"][0])
    asked["extra_body"] = {"think_budget": 5}
    message = model.openai_chat(ASKED, **asked)["choices"][0]["message"]
    assert message["reasoning_content"] and json.loads(message["content"])["a"] in (1, 2)
    chunks = list(model.openai_chat(ASKED, stream=True, **asked))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == message["reasoning_content"]
    assert joined(chunks) == message["content"]


@pytest.mark.parametrize(
    ("keywords", "parameter", "words"),
    [
        ({"max_toks": 5}, "max_toks", "did you mean max_tokens?"),
        ({"top_k": 5}, "top_k", "extra_body"),
        ({"n": 0}, "n", "at least 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "at least 0"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs is not True"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "up to 20"),
        ({"temperature": -1}, "temperature", "at least 0"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "one of"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "knows of no thoughts"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not True"),
        ({"stream": "yes"}, "stream", "'yes'"),
        ({"logit_bias": [5]}, "logit_bias", "a dict"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "'a'"),
        ({"extra_body": 5}, "extra_body", "a dict"),
        ({"extra_body": {"topk": 5}}, "topk", "did you mean top_k?"),
        ({"functions": []}, "functions", "no parameter of openai_chat()"),
    ],
)
def test_what_cannot_be(chatty, keywords: dict[str, Any], parameter: str, words: str) -> None:
    with pytest.raises(UsageError) as told:
        chatty.openai_chat(ASKED, **keywords)
    assert told.value.parameter == parameter and words in str(told.value) and "\n" not in str(told.value)


def test_an_answer_of_calls_that_is_cut_off_says_so(chatty) -> None:
    asked = {"temperature": 1.0, "tools": TOOLS, "tool_choice": "required", "extra_body": {"top_k": 0, "min_p": 0.0}}
    for seed in range(30):
        whole = chatty.chat(ASKED, temperature=1.0, top_k=0, min_p=0.0, tools=TOOLS, tool_choice="required", seed=seed,
                            max_tokens=400)  # fmt: skip
        assert whole.text is not None
        if len(whole.tool_calls) > 1:
            break
    choice = chatty.openai_chat(ASKED, seed=seed, max_tokens=len(whole.token_ids) - 5, **asked)["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("calls", [5, [5], [{"function": {}}], [{"function": "get"}]])
def test_calls_in_messages_that_are_none(chatty, calls: Any) -> None:
    with pytest.raises(UsageError, match="tool_calls"):
        chatty.openai_chat([*ASKED, {"role": "assistant", "tool_calls": calls}])


@pytest.mark.parametrize("arguments", ["{bad", 5, "[1]", [1]])
def test_arguments_of_calls_that_are_no_object(chatty, arguments: Any) -> None:
    """Whether or not the template knows of calls."""
    call = {"id": "a", "type": "function", "function": {"name": "get", "arguments": arguments}}
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
    place = f"messages.{len(ASKED)}.tool_calls.0.function.arguments"
    for ask in (chatty.openai_chat, chatty.chat):
        with pytest.raises(UsageError, match=rf"^{place} is .*; expected a JSON object") as told:
            ask(messages)
        assert told.value.parameter == place


def test_words_of_openai_mean_the_same_here(chatty) -> None:
    banned = chatty.chat(ASKED, **OFTEN)
    assert banned.text is not None
    first = banned.token_ids[0]
    found = chatty.openai_chat(
        ASKED, logit_bias={str(first): -100}, user="me", store=False, metadata=None, seed=None, **OFTEN
    )
    other = chatty.chat(ASKED, logit_bias={first: -100.0}, **OFTEN)
    assert found["choices"][0]["message"]["content"] == other.text != banned.text
    short = chatty.openai_chat(ASKED, max_completion_tokens=3, **OFTEN)
    assert short["usage"]["completion_tokens"] == 3
