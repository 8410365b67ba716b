"""Arguments of calls come piece by piece in streams, and are those of the whole answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgellm.server import driver
from edgellm.server.ollama.types import Asking, ChatRequest
from tests.arch import tiny
from tests.text.calls.templates import TEMPLATES

from .running import Running, running

pytest.importorskip("llguidance", reason="the extra `structure` is not installed")

SCHEMA = {"type": "object", "properties": {"note": {"type": "string", "minLength": 10, "maxLength": 20},
                                           "days": {"type": "integer", "minimum": 1, "maximum": 9}},
          "required": ["note", "days"], "additionalProperties": False}  # fmt: skip
OPENAI = {"messages": [{"role": "user", "content": "a"}], "tool_choice": "required", "temperature": 1,
          "tools": [{"type": "function", "function": {"name": "write", "parameters": SCHEMA}}]}  # fmt: skip
ANTHROPIC = {"messages": OPENAI["messages"], "temperature": 1, "tool_choice": {"type": "any"},
             "tools": [{"name": "write", "input_schema": SCHEMA}]}  # fmt: skip


@pytest.fixture(scope="module", params=["hermes", "mistral", "mistral 3", "arguments first"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, bool]]:
    """A server of a model that calls tools; and whether its arguments can be told before they are whole."""
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATES[request.param]
    path: Path = checkpoint.save(tmp_path_factory.mktemp("caller") / "caller.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "SECONDS_BETWEEN", 0.0)
        with running({"caller": path}) as server:
            yield server, request.param != "arguments first"


def streamed(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = server.post(path, {**body, "stream": True}).text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def put_together(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As clients do."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "name": part["function"]["name"], "arguments": "", "n": 0})
            else:
                assert part["index"] == len(calls) - 1 and "name" not in part["function"] and "id" not in part
            calls[-1]["arguments"] += part["function"]["arguments"]
            calls[-1]["n"] += 1
    return calls


@pytest.mark.parametrize("n", [1, 2])
def test_in_the_words_of_openai(caller: tuple[Running, bool], n: int) -> None:
    server, is_early = caller
    n_parts: list[int] = []
    for seed in range(4):
        body = {**OPENAI, "model": "caller", "seed": seed, "max_tokens": 400, "n": n, "parallel_tool_calls": seed < 2}
        whole = server.post("/v1/chat/completions", body).json()["choices"]
        chunks = [chunk["choices"][0] for chunk in streamed(server, "/v1/chat/completions", body) if chunk["choices"]]
        for index in range(n):
            told = [chunk for chunk in chunks if chunk["index"] == index]
            calls = put_together([chunk["delta"] for chunk in told])
            said = "".join(chunk["delta"].get("content") or "" for chunk in told)
            assert said == (whole[index]["message"]["content"] or "")
            assert told[-1]["finish_reason"] == whole[index]["finish_reason"]
            wanted = whole[index]["message"].get("tool_calls", [])
            if whole[index]["finish_reason"] == "length":  # what was cut off is told as far as it came
                calls = calls[: len(wanted)]
            assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
                (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in wanted
            ]
            n_parts += [call["n"] for call in calls]
            assert len({call["id"] for call in calls}) == len(calls)
    assert len(n_parts) > 2 and (max(n_parts) > 1) == is_early


def test_in_the_words_of_anthropic(caller: tuple[Running, bool]) -> None:
    server, is_early = caller
    body = {**ANTHROPIC, "model": "caller", "max_tokens": 400, "temperature": 0}
    whole = server.post("/v1/messages", body).json()
    wanted = [block["input"] for block in whole["content"] if block["type"] == "tool_use"]
    for _ in range(5):  # where the event loop gets no turn, all comes at once
        events = streamed(server, "/v1/messages", body)
        n_deltas = sum(one.get("delta", {}).get("type") == "input_json_delta" for one in events)
        if not is_early or n_deltas > len(wanted):
            break
    blocks: list[dict[str, Any]] = []
    for one in events:
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append({**one["content_block"], "json": ""})
        elif one["type"] == "content_block_delta":
            assert one["index"] == len(blocks) - 1
            blocks[-1]["json"] += one["delta"].get("partial_json", "")
    starts = [one["index"] for one in events if one["type"] == "content_block_start"]
    assert starts == [one["index"] for one in events if one["type"] == "content_block_stop"]
    found = [block["json"] for block in blocks if block["type"] == "tool_use"][: len(wanted)]
    assert [json.loads(text) for text in found] == wanted
    assert wanted and (n_deltas > len(wanted)) == is_early


def responses_body(**more: Any) -> dict[str, Any]:
    tool = {"type": "function", "name": "write", "parameters": SCHEMA, "strict": True}
    return {"model": "caller", "input": "a", "temperature": 1, "tools": [tool], "tool_choice": "required", **more}


def test_in_the_words_of_responses(caller: tuple[Running, bool]) -> None:
    server, is_early = caller
    n_parts = []
    for seed in range(4):
        body = responses_body(seed=seed, max_output_tokens=400, parallel_tool_calls=seed < 2)
        whole = server.post("/v1/responses", body).json()
        events = streamed(server, "/v1/responses", body)
        assert [one["sequence_number"] for one in events] == list(range(len(events)))
        assert events[-1]["type"] == f"response.{whole['status']}"
        output = events[-1]["response"]["output"]
        told = ("type", "name", "status") if whole["status"] == "completed" else ("type", "name")
        if is_early:
            assert [[item[name] for name in told] for item in output] == [
                [item[name] for name in told] for item in whole["output"]
            ]
        for index, item in enumerate(output):
            mine = [one for one in events if one.get("output_index") == index]
            assert [mine[0]["type"], mine[-1]["type"]] == ["response.output_item.added", "response.output_item.done"]
            assert mine[0]["item"] == {**item, "arguments": "", "status": "in_progress"} and mine[-1]["item"] == item
            *deltas, done = [one for one in mine if "item_id" in one]
            assert {one["item_id"] for one in [*deltas, done]} == {item["id"]}
            assert {one["type"] for one in deltas} == {"response.function_call_arguments.delta"}
            assert "".join(one["delta"] for one in deltas) == done["arguments"] == item["arguments"]
            assert done["type"] == "response.function_call_arguments.done"
            if item["status"] == "completed":
                n_parts.append(len(deltas))
                assert json.loads(item["arguments"]) == json.loads(whole["output"][index]["arguments"])
    assert (max(n_parts) > 1) == is_early


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_no_part_of_a_conversation_of_responses(
    caller: tuple[Running, bool], stream: bool
) -> None:
    server, is_early = caller
    body = responses_body(seed=1, max_output_tokens=400, parallel_tool_calls=False)
    body["max_output_tokens"] = server.post("/v1/responses", body).json()["usage"]["output_tokens"] // 2
    if stream:
        found = streamed(server, "/v1/responses", body)[-1]["response"]
    else:
        found = server.post("/v1/responses", body).json()
    assert found["status"] == "incomplete"
    calls = [item for item in found["output"] if item["type"] == "function_call"]
    assert [(call["name"], call["status"]) for call in calls] == ([("write", "incomplete")] if is_early else [])
    items = server.get(f"/v1/responses/{found['id']}/input_items").json()["data"]
    assert [item["content"] for item in items] == ["a"]
    after = server.post("/v1/responses", responses_body(max_output_tokens=16, previous_response_id=found["id"]))
    assert after.status_code == 200


def test_in_the_words_of_ollama(caller: tuple[Running, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is told as soon as it is whole, and in a part of its own."""
    server, is_early = caller
    # Ollama has no tool_choice, and a random model calls nothing by itself.
    must = lambda asked: {**Asking.keywords(asked), "tool_choice": "required"}  # noqa: E731
    monkeypatch.setattr(ChatRequest, "keywords", must)
    longest = timedelta(0)
    for seed in range(6):
        options = {"seed": seed, "num_predict": 500, "temperature": 1}
        body = {"model": "caller", "messages": OPENAI["messages"], "tools": OPENAI["tools"], "options": options}
        whole = server.post("/api/chat", {**body, "stream": False}).json()["message"]
        text = server.post("/api/chat", body).text
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        calls = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
        times = [datetime.fromisoformat(line["created_at"].rstrip("Z")) for line in lines]
        longest = max(longest, times[-1] - times[0])
        assert all(len(found) == 1 for found in calls)
        assert [call["function"] for (call,) in calls] == [call["function"] for call in whole.get("tool_calls", ())]
        assert [call["function"]["index"] for (call,) in calls] == list(range(len(calls)))
    assert not is_early or longest > timedelta(milliseconds=3)  # other calls are written meanwhile


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(caller: tuple[Running, bool]) -> None:
    server, is_early = caller
    whole_body = {**OPENAI, "model": "caller", "seed": 1, "parallel_tool_calls": False, "max_tokens": 400}
    usage = server.post("/v1/chat/completions", whole_body).json()["usage"]
    body = {**whole_body, "max_tokens": usage["completion_tokens"] // 2}
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert whole["finish_reason"] == "length" and not whole["message"].get("tool_calls")
    assert not whole["message"]["content"]
    chunks = [chunk["choices"][0] for chunk in streamed(server, "/v1/chat/completions", body) if chunk["choices"]]
    calls = put_together([chunk["delta"] for chunk in chunks])
    assert [call["name"] for call in calls] == (["write"] if is_early else [])
    for call in calls:
        assert call["arguments"].startswith('{"note"') and not call["arguments"].endswith("}")
    assert chunks[-1]["finish_reason"] == "length"
