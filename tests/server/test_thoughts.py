"""Thoughts, in the words of each interface: of a tiny model whose template begins one, and a budget that ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.arch import tiny

from .running import Running, running

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
CHAT = {"model": "thinker", "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATE
    path: Path = checkpoint.save(tmp_path_factory.mktemp("thinker") / "thinker.gguf")
    with running({"thinker": path}) as server:
        yield server


def parts(server: Running, path: str, body: dict) -> list[dict]:
    """What a stream holds."""
    text = httpx.post(server.url + path, json={**body, "stream": True}, timeout=60).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: {", "{"))]
    return [json.loads(line) for line in lines]


def test_in_the_words_of_openai(thinker) -> None:
    body = {**CHAT, "think_budget": 4, "max_tokens": 40, "temperature": 0, "logit_bias": {"2": -100}}
    message = thinker.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"]
    deltas = [one["choices"][0]["delta"] for one in parts(thinker, "/v1/chat/completions", body) if one["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == message["reasoning_content"]
    kinds = [next(iter(delta)) for delta in deltas if delta and "role" not in delta]
    assert kinds == sorted(kinds, reverse=True)  # the thought comes first
    plain = thinker.post("/v1/chat/completions", {**CHAT, "reasoning_effort": "none", "max_tokens": 10}).json()
    assert "reasoning_content" not in plain["choices"][0]["message"]


def test_in_the_words_of_responses(thinker) -> None:
    body = {"model": "thinker", "input": "a", "max_output_tokens": 6, "reasoning": {"effort": "low"}, "temperature": 0}
    answer = thinker.post("/v1/responses", body).json()
    assert answer["output"][0]["type"] == "reasoning"
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = [one["type"] for one in parts(thinker, "/v1/responses", body)]
    assert "response.reasoning_text.delta" in events and events[-1] == "response.incomplete"


def test_in_the_words_of_anthropic(thinker) -> None:
    body = {**CHAT, "max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 4}, "temperature": 0}
    content = thinker.post("/v1/messages", body).json()["content"]
    assert content[0]["type"] == "thinking" and content[0]["thinking"]
    told = parts(thinker, "/v1/messages", body)
    kinds = [one["content_block"]["type"] for one in told if one["type"] == "content_block_start"]
    assert kinds == [block["type"] for block in content]
    thought = "".join(one["delta"].get("thinking", "") for one in told if one["type"] == "content_block_delta")
    assert thought.strip() == content[0]["thinking"]
    again = {**body, "messages": [*CHAT["messages"], {"role": "assistant", "content": content},
                                  {"role": "user", "content": "b"}]}  # fmt: skip
    assert thinker.post("/v1/messages", again).status_code == 200
    off = thinker.post("/v1/messages", {**body, "thinking": {"type": "disabled"}}).json()["content"]
    assert [block["type"] for block in off] in (["text"], [])


def test_in_the_words_of_ollama(thinker) -> None:
    body = {**CHAT, "options": {"num_predict": 6, "temperature": 0}, "think": True}
    message = thinker.post("/api/chat", {**body, "stream": False}).json()["message"]
    assert message["thinking"]
    told = parts(thinker, "/api/chat", body)
    assert "".join(one["message"].get("thinking", "") for one in told).strip() == message["thinking"]
    assert "thinking" in thinker.post("/api/show", {"model": "thinker"}).json()["capabilities"]
    off = thinker.post("/api/chat", {**body, "think": False, "stream": False}).json()["message"]
    assert "thinking" not in off
