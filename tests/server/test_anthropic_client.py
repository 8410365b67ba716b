"""The official client of Anthropic against the server."""

from __future__ import annotations

import pytest

anthropic = pytest.importorskip("anthropic")

QUESTION = [{"role": "user", "content": "Name a river."}]
WEATHER = {"name": "weather", "description": "Tells the weather of a place.",
           "input_schema": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}},
                            "required": ["place"], "additionalProperties": False}}  # fmt: skip


@pytest.fixture(scope="module")
def client(smol):
    with anthropic.Anthropic(base_url=smol.url, api_key="none", max_retries=0) as made:
        yield made


def asked(**more):
    return {"model": "smollm2-135m", "messages": QUESTION, "max_tokens": 12, "extra_body": {"temperature": 0}, **more}


def test_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    assert client.models.retrieve("smollm2-135m").display_name == "smollm2-135m"


def test_a_message_and_the_same_as_a_stream(client) -> None:
    whole = client.messages.create(**asked())
    assert (whole.role, whole.stop_reason, whole.usage.output_tokens) == ("assistant", "max_tokens", 12)
    with client.messages.stream(**asked()) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)
    assert final.usage.cache_read_input_tokens > 0
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def test_stop_sequences_and_a_system_text(client) -> None:
    system = [{"type": "text", "text": "Answer in rhymes.", "cache_control": {"type": "ephemeral"}}]
    plain = client.messages.create(**asked(system=system))
    word = plain.content[0].text.split()[1]
    cut = client.messages.create(**asked(system=system, stop_sequences=[word]))
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)
    assert plain.content[0].text.startswith(cut.content[0].text)


def test_counted_tokens_are_those_of_the_answer(client) -> None:
    count = client.messages.count_tokens(model="smollm2-135m", messages=QUESTION, system="Be brief.")
    usage = client.messages.create(**asked(system="Be brief.")).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(client, stream: bool) -> None:
    wishes = asked(tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=80)
    if stream:
        with client.messages.stream(**wishes) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**wishes)
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "weather" and set(call.input) == {"place"}
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "rain"}]}
               for block in answer.content if block.type == "tool_use"]  # fmt: skip
    told = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    after = client.messages.create(**asked(messages=told, tools=[WEATHER]))
    assert after.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}, "think"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "tool", "name": "no"}, "tools": [WEATHER]}, "tool_choice"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "robot"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
)
def test_what_cannot_be_is_told_in_the_words_of_the_interface(client, wrong, what) -> None:
    with pytest.raises(anthropic.BadRequestError, match=what) as caught:
        client.messages.create(**asked(**wrong))
    assert caught.value.body["error"]["type"] == "invalid_request_error"
