"""The official client of OpenAI against the server."""

from __future__ import annotations

import json
import time

import pytest

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402

import edgellm  # noqa: E402
from edgellm.params import RuntimeConfig  # noqa: E402

from .running import running  # noqa: E402

QUESTION = [{"role": "user", "content": "Name a river."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}},
                       "required": ["place"], "additionalProperties": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def client(smol):
    with openai.OpenAI(base_url=f"{smol.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def loaded(smollm2):
    with edgellm.load(smollm2, n_threads=2) as model:
        yield model


def test_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    assert client.models.retrieve("smollm2-135m").owned_by == "edgellm"
    with pytest.raises(openai.NotFoundError, match="smollm2-135m"):
        client.models.retrieve("smollm2-136m")


def test_a_chat_says_what_the_engine_says(client, loaded) -> None:
    generation = loaded.chat(QUESTION, temperature=0, max_tokens=12)
    expected = "".join(generation)
    whole = client.chat.completions.create(model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=12)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (generation.stats.n_prompt_tokens, 12)
    stream = client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, temperature=0, max_completion_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == expected
    assert len([text for text in said if text]) > 3
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_several_answers_each_with_its_own_seed(client, loaded) -> None:
    expected = ["".join(one) for one in loaded.chat(QUESTION, n=3, seed=5, max_tokens=8)]
    found = client.chat.completions.create(model="smollm2-135m", messages=QUESTION, n=3, seed=5, max_tokens=8)
    assert [choice.message.content for choice in found.choices] == expected
    assert len(set(expected)) > 1
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, n=3, seed=5, max_tokens=8, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == expected


def test_logprobs_of_a_chat(client, loaded) -> None:
    generation = loaded.chat(QUESTION, temperature=0, max_tokens=5, logprobs=3)
    list(generation)
    found = client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    told = found.choices[0].logprobs.content
    assert [one.logprob for one in told] == pytest.approx([one.logprob for one in generation.logprobs])
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].token == one.token for one in told)
    assert b"".join(bytes(one.bytes) for one in told).decode().strip() == found.choices[0].message.content.strip()


def test_stop_bias_and_the_words_of_llama_cpp(client) -> None:
    plain = client.chat.completions.create(model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=20)
    word = plain.choices[0].message.content.split()[2]
    cut = client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=20, stop=[word]
    )
    assert cut.choices[0].finish_reason == "stop"
    assert plain.choices[0].message.content.startswith(cut.choices[0].message.content)
    assert word not in cut.choices[0].message.content
    more = {"top_k": 1, "repeat_penalty": 1.3, "regex": "[0-9]{3}"}
    number = client.chat.completions.create(model="smollm2-135m", messages=QUESTION, extra_body=more)
    assert len(number.choices[0].message.content) == 3 and number.choices[0].message.content.isdigit()


def test_fields_that_ask_for_nothing(client) -> None:
    nothing = {"response_format": {"type": "text"}, "stop": "xyz", "tools": [], "tool_choice": "none", "user": "ann",
               "max_tokens": 2, "seed": -5, "logit_bias": {}, "parallel_tool_calls": True}  # fmt: skip
    found = client.chat.completions.create(model="smollm2-135m", messages=QUESTION, **nothing)
    assert found.usage.completion_tokens == 2
    empty = {
        name: None for name in ("temperature", "top_p", "stop", "seed", "n", "tools", "logprobs", "stream_options")
    }
    assert (
        client.chat.completions.create(
            model="smollm2-135m", messages=QUESTION, max_tokens=1, extra_body=empty
        ).usage.completion_tokens
        == 1
    )


def test_an_answer_of_a_schema(client) -> None:
    class River(BaseModel):
        name: str
        length: int

    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
              "length": {"type": "integer", "minimum": 0, "maximum": 9999}}, "required": ["name", "length"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "river", "schema": schema, "strict": True}}
    found = client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, response_format=form, max_tokens=60, seed=1
    )
    River.model_validate_json(found.choices[0].message.content)
    free = client.chat.completions.create(
        model="smollm2-135m", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=60, seed=1
    )
    json.loads(free.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(client, stream: bool) -> None:
    asked = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "The weather in Oslo?"}],
             "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80,
             "seed": 3}  # fmt: skip
    if stream:
        with client.chat.completions.stream(**asked) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"place"}
    told = [*asked["messages"], choice.message.model_dump(exclude_none=True, exclude={"parsed"})]
    for one in told[-1]["tool_calls"]:
        one["function"].pop("parsed_arguments", None)
    told += [{"role": "tool", "tool_call_id": one.id, "content": "rain"} for one in choice.message.tool_calls]
    after = client.chat.completions.create(model="smollm2-135m", messages=told, tools=[WEATHER], max_tokens=5)
    assert after.choices[0].message.content or after.choices[0].message.tool_calls


def test_text_completions(client, loaded) -> None:
    prompts = ["The sky is", "Two and two"]
    expected = ["".join(loaded.generate(prompt, temperature=0, max_tokens=6)) for prompt in prompts]
    found = client.completions.create(model="smollm2-135m", prompt=prompts, temperature=0, max_tokens=6)
    assert [choice.text for choice in found.choices] == expected
    ids = client.completions.create(
        model="smollm2-135m", prompt=loaded.tokenize(prompts[0], add_special=True), temperature=0, max_tokens=6
    )
    assert ids.choices[0].text == expected[0]
    parts = client.completions.create(
        model="smollm2-135m", prompt=prompts[0], temperature=0, max_tokens=6, stream=True, echo=True
    )
    assert "".join(part.choices[0].text for part in parts) == prompts[0] + expected[0]


def test_what_a_model_thinks_of_a_given_text(client, loaded) -> None:
    """As lm-eval asks: the log-probabilities of a prompt, by `echo`."""
    text = "The capital of France is Paris"
    ids = loaded.tokenize(text, add_special=True)
    logits = loaded.logits(ids)
    expected = [float(row[token] - row.max() - _log_sum(row)) for row, token in zip(logits[:-1], ids[1:], strict=True)]
    for n_new in (0, 1):
        found = client.completions.create(
            model="smollm2-135m", prompt=ids, max_tokens=n_new, logprobs=1, echo=True, temperature=0
        ).choices[0]
        assert found.text.startswith(text)
        assert found.logprobs.token_logprobs[0] is None
        assert found.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        assert len(found.logprobs.tokens) == len(ids) + n_new
        assert "".join(found.logprobs.tokens) == found.text
        places = zip(found.logprobs.text_offset, found.logprobs.tokens, strict=True)
        assert all(found.text[offset:].startswith(token) for offset, token in places)
        greedy = [max(top.values()) for top in found.logprobs.top_logprobs[1 : len(ids)]]
        assert all(best >= logprob - 1e-6 for best, logprob in zip(greedy, expected, strict=True))


def _log_sum(row) -> float:
    import numpy as np

    return float(np.log(np.exp(row - row.max()).sum()))


def test_a_model_that_gives_no_embeddings_says_so(client) -> None:
    with pytest.raises(openai.BadRequestError, match="SmolLM2"):
        client.embeddings.create(model="smollm2-135m", input="a text")


def test_files_and_batches(client) -> None:
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "smollm2-135m", "messages": QUESTION, "max_tokens": n, "temperature": 0}}
        for n in (1, 2, 3)
    ]  # fmt: skip
    lines[2]["body"]["frequency"] = 1
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert client.files.content(file.id).read() == data
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(200):
        batch = client.batches.retrieve(batch.id)
        if batch.status == "completed":
            break
        time.sleep(0.05)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [one["custom_id"] for one in answers] == ["1", "2"]
    assert [one["response"]["body"]["usage"]["completion_tokens"] for one in answers] == [1, 2]
    (wrong,) = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert "frequency" in wrong["response"]["body"]["error"]["message"]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_an_answer_goes_on_when_the_context_is_full(tiny_chat) -> None:
    body = {"model": "tiny", "max_tokens": 150, "temperature": 0, "logit_bias": {"2": -100}}
    with (
        running({"tiny": tiny_chat}, runtime=RuntimeConfig(n_ctx=64)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as made,
    ):
        for extra, n_tokens in (
            (None, None),
            ({"when_full": "shift"}, 150),
            ({"when_full": "shift", "n_keep": 8}, 150),
        ):
            text = made.completions.create(prompt="the tea", extra_body=extra, **body)
            chat = made.chat.completions.create(
                messages=[{"role": "user", "content": "the tea"}], extra_body=extra, **body
            )
            for found in (text, chat):
                assert found.choices[0].finish_reason == "length"
                if n_tokens is None:
                    assert found.usage.completion_tokens < 64 and not hasattr(found.usage, "context_shifts")
                else:
                    assert found.usage.completion_tokens == n_tokens and found.usage.context_shifts > 2
        for wrong, words in (({"n_keep": 3}, "n_keep is 3"), ({"when_full": "drop"}, "when_full is 'drop'")):
            with pytest.raises(openai.BadRequestError, match=words):
                made.completions.create(prompt="the tea", extra_body=wrong, **body)
        question = [{"role": "user", "content": "the tea"}]
        for path, asked in (
            ("/v1/messages", {"messages": question, "max_tokens": 150}),
            ("/v1/responses", {"input": question, "max_output_tokens": 150}),
        ):
            asked |= {"model": "tiny", "top_k": 1}
            plain, shifted = (server.post(path, asked | extra).json() for extra in ({}, {"when_full": "shift"}))
            assert "context_shifts" not in plain["usage"] and plain["usage"]["output_tokens"] < 64
            whole = {"/v1/messages": ("stop_reason", "end_turn"), "/v1/responses": ("status", "completed")}[path]
            assert shifted[whole[0]] == whole[1] or shifted["usage"]["context_shifts"] > 2
            assert server.post(path, asked | {"when_full": "drop"}).status_code == 400
        asked = {"model": "tiny", "prompt": "the tea", "raw": True, "stream": False}
        asked["options"] = {"temperature": 0, "num_predict": 400, "num_keep": 8}
        stopped, gone_on = (server.post("/api/generate", {**asked, "shift": shift}).json() for shift in (False, True))
        assert gone_on["response"].startswith(stopped["response"])
        assert "context_shifts" not in stopped and (gone_on["done_reason"] == "stop" or gone_on["context_shifts"])
