"""/v1/responses by OpenAI's official client."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")

WEATHER = {"type": "function", "name": "weather", "description": "Tells the weather of a place.", "strict": True,
           "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}},
                          "required": ["place"], "additionalProperties": False}}  # fmt: skip
ASKED = {"model": "smollm2-135m", "input": "Name a river.", "temperature": 0, "max_output_tokens": 12}


@pytest.fixture(scope="module")
def client(smol):
    with openai.OpenAI(base_url=f"{smol.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_an_answer_is_that_of_a_chat_also_as_a_stream(client) -> None:
    whole = client.responses.create(**ASKED)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    chat = client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Name a river."}], temperature=0, max_tokens=12
    )
    assert whole.output_text == chat.choices[0].message.content
    with client.responses.stream(**ASKED) as stream:
        events = list(stream)
    assert events[-1].type == "response.incomplete"
    final = events[-1].response
    assert final.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.usage.output_tokens == 12


def test_a_conversation_is_remembered_if_it_is_to_be(client) -> None:
    first = client.responses.create(**ASKED)
    after = client.responses.create(**{**ASKED, "input": "And a lake?"}, previous_response_id=first.id)
    by_hand = client.responses.create(
        **{**ASKED, "input": [{"role": "user", "content": "Name a river."}, *first.output,
                              {"role": "user", "content": "And a lake?"}]}, store=False,
    )  # fmt: skip
    assert after.output_text == by_hand.output_text
    assert after.usage.input_tokens == by_hand.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(after.id).output_text == after.output_text
    assert [item.content for item in client.responses.input_items.list(first.id)] == ["Name a river."]
    for name in (by_hand.id, "resp_none"):
        with pytest.raises(openai.NotFoundError, match=name[:20]):
            client.responses.retrieve(name)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**ASKED, previous_response_id=first.id)


@pytest.mark.parametrize(
    "asked",
    [
        {"input": "Name a river."},
        {"input": [{"role": "user", "content": "Name a river."}], "instructions": "Be brief."},
        {"input": "How warm is it?", "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
    ],
)  # fmt: skip
def test_tokens_are_counted_as_an_answer_reads_them(client, asked) -> None:
    counted = client.responses.input_tokens.count(model="smollm2-135m", **asked)
    assert counted.object == "response.input_tokens"
    answered = client.responses.create(model="smollm2-135m", max_output_tokens=2, **asked)
    assert counted.input_tokens == answered.usage.input_tokens


def test_tokens_of_a_conversation_are_counted_with_what_was_said_before(client) -> None:
    first = client.responses.create(**ASKED)
    more = {"model": "smollm2-135m", "input": "And a lake?", "previous_response_id": first.id}
    counted = client.responses.input_tokens.count(**more)
    assert counted.input_tokens == client.responses.create(**more, max_output_tokens=2).usage.input_tokens
    with pytest.raises(openai.NotFoundError, match="resp_none"):
        client.responses.input_tokens.count(**{**more, "previous_response_id": "resp_none"})
    with pytest.raises(openai.BadRequestError, match="input_image"):
        client.responses.input_tokens.count(
            model="smollm2-135m", input=[{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]
        )


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(client, stream: bool) -> None:
    asked = {**ASKED, "tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 80}
    if stream:
        with client.responses.stream(**asked) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(**asked)
    (call, *_) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather" and set(json.loads(call.arguments)) == {"place"}
    results = [{"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
               for item in answer.output if item.type == "function_call"]  # fmt: skip
    after = client.responses.create(**{**ASKED, "input": results, "tools": [WEATHER]}, previous_response_id=answer.id)
    assert after.usage.input_tokens > answer.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_was_cut_off_is_incomplete(client, stream: bool) -> None:
    asked = {**ASKED, "max_output_tokens": 3}
    if stream:
        done = [event for event in client.responses.create(**asked, stream=True) if event.type.endswith("item.done")]
        items = [event.item for event in done]
    else:
        answer = client.responses.create(**asked)
        assert answer.status == "incomplete"
        items = answer.output
    assert [item.status for item in items] == ["incomplete"]


def test_an_answer_of_a_schema(client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "name": "number", "schema": schema, "strict": True}}
    found = client.responses.create(**{**ASKED, "max_output_tokens": 40}, text=form)
    assert set(json.loads(found.output_text)) == {"n"}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["file_search_call.results"]}, "include"),
    ],
)
def test_what_cannot_be_is_told(client, wrong, what) -> None:
    with pytest.raises(openai.BadRequestError, match=what):
        client.responses.create(**{**ASKED, **wrong})
