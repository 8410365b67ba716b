"""Arguments of calls come piece by piece in streams, and are those of the whole answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.server import driver
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


@pytest.fixture(scope="module", params=["hermes", "arguments first"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, bool]]:
    """A server of a model that calls tools; and whether its arguments can be told before they are whole."""
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATES[request.param]
    path: Path = checkpoint.save(tmp_path_factory.mktemp("caller") / "caller.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "SECONDS_BETWEEN", 0.0)
        with running({"caller": path}) as server:
            yield server, request.param == "hermes"


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
    events = streamed(server, "/v1/messages", body)
    blocks: list[dict[str, Any]] = []
    n_deltas = 0
    for one in events:
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append({**one["content_block"], "json": ""})
        elif one["type"] == "content_block_delta":
            assert one["index"] == len(blocks) - 1
            blocks[-1]["json"] += one["delta"].get("partial_json", "")
            n_deltas += one["delta"]["type"] == "input_json_delta"
    starts = [one["index"] for one in events if one["type"] == "content_block_start"]
    assert starts == [one["index"] for one in events if one["type"] == "content_block_stop"]
    wanted = [block["input"] for block in whole["content"] if block["type"] == "tool_use"]
    found = [block["json"] for block in blocks if block["type"] == "tool_use"][: len(wanted)]
    assert [json.loads(text) for text in found] == wanted
    assert wanted and (n_deltas > len(wanted)) == is_early


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
