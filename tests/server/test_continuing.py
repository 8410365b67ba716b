"""An answer that goes on from the assistant's last message, in the words of each interface.

Its prompt is what the model's template writes up to there: so the answer is that to the same as a plain text.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .running import Running

ASK = {"role": "user", "content": "the tea"}
BEGUN = [ASK, {"role": "assistant", "content": "the tea is"}]
CONTINUED = "user: the tea\nassistant: the tea is"
ANEW = f"{CONTINUED}\nassistant: "
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}


def plain(server: Running, prompt: str) -> tuple[str, int]:
    """(text, tokens of the prompt) of a text that is continued."""
    ids = server.post("/tokenize", {"model": "tiny", "content": prompt}).json()["tokens"]
    found = server.post("/v1/completions", {**GREEDY, "prompt": ids}).json()
    return found["choices"][0]["text"], found["usage"]["prompt_tokens"]


def streamed(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = server.post(path, {**body, "stream": True}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: {", "{"))]
    return [json.loads(line) for line in lines]


def test_in_the_words_of_anthropic(small: Running) -> None:
    text, n_prompt = plain(small, CONTINUED)
    assert text.strip() and text != plain(small, ANEW)[0]
    for content in ("the tea is", [{"type": "text", "text": "the tea is"}]):
        body = {**GREEDY, "messages": [ASK, {"role": "assistant", "content": content}]}
        answer = small.post("/v1/messages", body).json()
        assert "".join(block["text"] for block in answer["content"]) == text  # what comes after it, and no more
        usage = answer["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == n_prompt
        told = [one["delta"]["text"] for one in streamed(small, "/v1/messages", body)
                if one["type"] == "content_block_delta"]  # fmt: skip
        assert "".join(told) == text
        counted = small.post("/v1/messages/count_tokens", {"model": "tiny", "messages": body["messages"]})
        assert counted.json()["input_tokens"] == n_prompt


def test_what_an_answer_of_anthropic_cannot_go_on_from(small: Running) -> None:
    def wrong(**more: Any) -> str:
        found = small.post("/v1/messages", {**GREEDY, "messages": BEGUN, **more})
        assert found.status_code == 400 and found.json()["error"]["type"] == "invalid_request_error"
        return found.json()["error"]["message"]

    assert "messages.1 ends with white space" in wrong(messages=[ASK, {"role": "assistant", "content": "the tea \n"}])
    form = {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}
    assert "output_config.format" in wrong(output_config=form)


def test_in_the_words_of_openai(small: Running) -> None:
    text, n_prompt = plain(small, CONTINUED)
    anew = plain(small, ANEW)
    for more in ({}, {"continue_final_message": True}, {"add_generation_prompt": False},
                 {"continue_final_message": True, "add_generation_prompt": False}):  # fmt: skip
        body = {**GREEDY, "messages": BEGUN, **more}
        answer = small.post("/v1/chat/completions", body).json()
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["usage"]["prompt_tokens"] == n_prompt
        deltas = [choice["delta"].get("content") or "" for one in streamed(small, "/v1/chat/completions", body)
                  for choice in one["choices"]]  # fmt: skip
        assert "".join(deltas) == text
        counted = small.post("/tokenize", {"model": "tiny", "messages": BEGUN, **more}).json()
        assert counted["count"] == n_prompt
    for more in ({"continue_final_message": False}, {"add_generation_prompt": True},
                 {"continue_final_message": False, "add_generation_prompt": True}):  # fmt: skip
        answer = small.post("/v1/chat/completions", {**GREEDY, "messages": BEGUN, **more}).json()
        assert (answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]) == anew
        counted = small.post("/tokenize", {"model": "tiny", "messages": BEGUN, **more}).json()
        assert counted["count"] == anew[1]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "both true"),
        ({"continue_final_message": False, "add_generation_prompt": False}, "both false"),
        ({"messages": [ASK], "continue_final_message": True}, "is of the role 'user'"),
        ({"messages": [ASK], "add_generation_prompt": False}, "is of the role 'user'"),
    ],
)
def test_what_contradicts_itself(small: Running, more: dict[str, Any], what: str) -> None:
    found = small.post("/v1/chat/completions", {**GREEDY, "messages": BEGUN, **more})
    assert found.status_code == 400 and what in found.json()["error"]["message"]
    assert found.json()["error"]["param"] == "continue_final_message"


@pytest.mark.parametrize("more", [{}, {"continue_final_message": True}])
def test_in_the_words_of_mistral_and_deepseek(small: Running, more: dict[str, Any]) -> None:
    text, n_prompt = plain(small, CONTINUED)
    body = {**GREEDY, "messages": [{**ASK, "prefix": False}, {**BEGUN[1], "prefix": True}], **more}
    answer = small.post("/v1/chat/completions", body).json()
    assert (answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]) == (text, n_prompt)
    counted = small.post("/tokenize", {"model": "tiny", "messages": body["messages"], **more}).json()
    assert counted["count"] == n_prompt


@pytest.mark.parametrize(
    ("messages", "more", "what"),
    [
        ([{**BEGUN[1], "prefix": True}, ASK], {}, "messages.0.prefix is true, but an answer goes on from the last"),
        ([{**ASK, "prefix": True}], {}, "messages.0.prefix is true"),
        ([ASK, {**BEGUN[1], "prefix": "yes"}], {}, "messages.1.prefix is 'yes'; expected true or false"),
        ([ASK, {**BEGUN[1], "prefix": True}], {"continue_final_message": False}, "begin anew"),
        ([ASK, {**BEGUN[1], "prefix": True}], {"add_generation_prompt": True}, "begin anew"),
    ],
)
def test_a_mark_that_cannot_be_followed(
    small: Running, messages: list[dict[str, Any]], more: dict[str, Any], what: str
) -> None:
    found = small.post("/v1/chat/completions", {**GREEDY, "messages": messages, **more})
    assert found.status_code == 400 and what in found.json()["error"]["message"]
    assert found.json()["error"]["param"].endswith(".prefix")


def test_a_thought_alone_where_the_template_knows_of_none(small: Running) -> None:
    """Nothing of what is given is dropped without a word."""
    thought = {"role": "assistant", "reasoning_content": "hm"}
    for last in (thought, {**thought, "content": ""}):
        found = small.post("/v1/chat/completions", {**GREEDY, "messages": [ASK, last]})
        assert found.status_code == 400 and "(reasoning_content) and no content" in found.json()["error"]["message"]
    block = {"type": "thinking", "thinking": "hm", "signature": ""}
    found = small.post("/v1/messages", {**GREEDY, "messages": [ASK, {"role": "assistant", "content": [block]}]})
    assert found.status_code == 400 and "holds a thought (thinking)" in found.json()["error"]["message"]
    found = small.post("/v1/chat/completions", {**GREEDY, "messages": [ASK, thought, ASK]})
    assert found.status_code == 200, found.text  # an earlier thought is nobody's concern


def test_in_the_words_of_ollama(small: Running) -> None:
    text, n_prompt = plain(small, CONTINUED)
    body = {"model": "tiny", "messages": BEGUN, "options": {"temperature": 0, "num_predict": 8}}
    answer = small.post("/api/chat", {**body, "stream": False}).json()
    assert (answer["message"]["content"], answer["prompt_eval_count"]) == (text, n_prompt)
    assert "".join(one["message"]["content"] for one in streamed(small, "/api/chat", body)) == text


def test_items_of_responses_are_whole(small: Running) -> None:
    """There, an answer is an item of its own."""
    body = {"model": "tiny", "input": BEGUN, "temperature": 0, "max_output_tokens": 16}
    assert small.post("/v1/responses", body).json()["usage"]["input_tokens"] == plain(small, ANEW)[1]
