"""The official client of Ollama against the server."""

from __future__ import annotations

import json

import pytest

ollama = pytest.importorskip("ollama")

QUESTION = [{"role": "user", "content": "Name a river."}]
COLD = {"temperature": 0, "num_predict": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def client(smol):
    made = ollama.Client(host=smol.url)
    yield made
    made._client.close()


def test_a_chat_and_the_same_as_a_stream(client) -> None:
    whole = client.chat("smollm2-135m", QUESTION, options=COLD)
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 12)
    parts = list(client.chat("smollm2-135m:latest", QUESTION, options=COLD, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts[-2:]] == [False, True]
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count > 0


def test_a_prompt_with_and_without_the_template(client) -> None:
    chatted = client.generate("smollm2-135m", "Name a river.", options=COLD)
    assert chatted.response == client.chat("smollm2-135m", QUESTION, options=COLD).message.content
    raw = client.generate("smollm2-135m", "The sky is", raw=True, options=COLD)
    assert raw.response and raw.prompt_eval_count == 3
    system = client.generate("smollm2-135m", "Name a river.", system="Be brief.", options=COLD)
    assert system.prompt_eval_count != chatted.prompt_eval_count


def test_an_answer_of_a_schema_and_calls(client) -> None:
    schema = {"type": "object", "properties": {"length": {"type": "integer", "minimum": 0, "maximum": 999}},
              "required": ["length"]}  # fmt: skip
    found = client.chat("smollm2-135m", QUESTION, format=schema, options={"num_predict": 60})
    assert set(json.loads(found.message.content)) == {"length"}
    answer = client.chat("smollm2-135m", QUESTION, tools=[WEATHER], options=COLD)
    assert answer.message.content or answer.message.tool_calls
    call = {"function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    told = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "weather", "content": "rain"}]  # fmt: skip
    assert client.chat("smollm2-135m", told, tools=[WEATHER], options=COLD).eval_count


def test_what_there_is(client, smollm2) -> None:
    (model,) = client.list().models
    assert (model.model, model.size) == ("smollm2-135m", smollm2.stat().st_size)
    assert (model.details.family, model.details.format) == ("llama", "gguf")
    shown = client.show("smollm2-135m")
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "completion" in shown.capabilities and "thinking" not in shown.capabilities
    assert "<|im_start|>" in shown.template
    assert [one.model for one in client.ps().models] == ["smollm2-135m"]


def test_null_is_as_good_as_nothing(small) -> None:
    for path, body in (("chat", {"messages": None}), ("generate", {"prompt": None}), ("chat", {"messages": QUESTION})):
        found = small.post(f"/api/{path}", {"model": "tiny", "options": None, "stream": False, **body})
        assert found.status_code == 200, found.text


def test_a_request_without_a_question_loads(client) -> None:
    found = client.generate("smollm2-135m", keep_alive="5m")
    assert (found.done, found.done_reason) == (True, "load")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"model": "no-such-model"}, "no-such-model"),
        ({"options": {"num_ctx": 1_000_000}}, "num_ctx"),
        ({"options": {"colour": 1}}, "colour"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"keep_alive": "a while"}, "keep_alive"),
        ({"think": True}, "think"),
        ({"messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]}, "images"),
    ],
)
def test_what_cannot_be_is_told(client, wrong, what) -> None:
    with pytest.raises(ollama.ResponseError, match=what) as caught:
        client.chat(**{"model": "smollm2-135m", "messages": QUESTION, **wrong})
    assert caught.value.status_code == (404 if "model" in wrong else 400)


def test_embeddings_of_a_model_that_gives_none(client) -> None:
    with pytest.raises(ollama.ResponseError, match="SmolLM2"):
        client.embed("smollm2-135m", "a text")
