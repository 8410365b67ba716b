"""What records are taken for, by their keys, and values of the wrong type."""

from __future__ import annotations

import json

import pytest

from edgellm.errors import UsageError
from edgellm.train.data.examples import Chat, Completion, Labelled, Preference, Prompt, Text
from edgellm.train.data.kinds import (
    ALL,
    LABELLED,
    PREFERENCES,
    PROMPTS,
    RATED,
    TO_IMITATE,
    kind_of,
    unused_keys,
)
from edgellm.train.data.values import Values

from .vocabularies import model, system, user

HI, YO, NO = user("Hi"), model("Yo"), model("No")
TOOL = {"type": "function", "function": {"name": "f"}}


def made(record: dict, wanted=ALL):
    return kind_of(record, wanted).make(Values(record))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [HI, YO]}, Chat([HI, YO])),
        ({"messages": [HI, YO], "tools": [TOOL]}, Chat([HI, YO], [TOOL])),
        ({"messages": [HI, YO], "tools": json.dumps([TOOL])}, Chat([HI, YO], [TOOL])),
        ({"messages": [HI, YO], "tools": None}, Chat([HI, YO])),
        ({"messages": [HI, YO], "tools": []}, Chat([HI, YO])),
        ({"messages": json.dumps([HI, YO])}, Chat([HI, YO])),  # a field of a CSV file
        (
            {"messages": [HI, YO], "chat_template_kwargs": {"enable_thinking": False}},
            Chat([HI, YO], variables={"enable_thinking": False}),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
            Chat([HI, YO]),
        ),
        (
            {"conversations": [{"from": "system", "value": "S"},
                               {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
            Chat([system("S"), {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {}}}]}]),
        ),
        (
            {"system": "S", "conversations": [{"from": "Human", "value": "Hi"}, {"from": "tool", "value": "21"}]},
            Chat([system("S"), HI, {"role": "tool", "content": "21"}]),
        ),
        ({"conversations": [HI, YO]}, Chat([HI, YO])),
        ({"conversations": [HI, YO], "system": "S"}, Chat([system("S"), HI, YO])),
        (
            {"prompt": "a", "completion": "b", "tools": [TOOL], "chat_template_kwargs": {"x": 1}},
            Completion("a", "b", tools=[TOOL], variables={"x": 1}),
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [TOOL]},
            Preference(Completion("a", "b", tools=[TOOL]), Completion("a", "c", tools=[TOOL])),
        ),
        (
            {"prompt": "a", "completion": "b", "label": True, "chat_template_kwargs": {"x": 1}},
            Labelled(Completion("a", "b", variables={"x": 1}), True),
        ),
        (  # the prompt in the middle of what both begin with
            {"prompt": "Hi ", "chosen": [system("S"), HI, YO], "rejected": [system("S"), HI, NO]},
            Preference(Chat([system("S"), HI, YO], n_given=2), Chat([system("S"), HI, NO], n_given=2)),
        ),
        ({"prompt": "a", "completion": "b"}, Completion("a", "b")),
        ({"prompt": [HI], "completion": [YO]}, Chat([HI, YO], n_given=1)),
        ({"prompt": [HI], "completion": "Yo"}, Chat([HI, YO], n_given=1)),
        ({"prompt": "Hi", "completion": [YO]}, Chat([HI, YO], n_given=1)),
        (
            {"instruction": "Add", "input": "1 1", "output": "2"},
            Completion("Add\n\n1 1", "2", "### Instruction:\nAdd\n\n### Input:\n1 1\n\n### Response:\n"),
        ),
        (
            {"instruction": "Add", "input": "", "output": "2", "text": "all of it"},
            Completion("Add", "2", "### Instruction:\nAdd\n\n### Response:\n"),
        ),
        ({"text": ""}, Text("")),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            Preference(Completion("a", "b"), Completion("a", "c")),
        ),
        (
            {"prompt": [HI], "chosen": [YO], "rejected": [NO]},
            Preference(Chat([HI, YO], n_given=1), Chat([HI, NO], n_given=1)),
        ),
        (
            {"prompt": "Hi", "chosen": [YO], "rejected": [NO]},
            Preference(Chat([HI, YO], n_given=1), Chat([HI, NO], n_given=1)),
        ),
        (  # whole chats, with the prompt beside them or without
            {"prompt": "Hi", "chosen": [HI, YO], "rejected": [HI, NO], "messages": [HI, YO], "score_chosen": 9},
            Preference(Chat([HI, YO], n_given=1), Chat([HI, NO], n_given=1)),
        ),
        (
            {"chosen": [HI, YO, HI, YO], "rejected": [HI, YO, HI, NO]},
            Preference(Chat([HI, YO, HI, YO], n_given=3), Chat([HI, YO, HI, NO], n_given=3)),
        ),
        (
            {"prompt": [HI], "chosen": [YO, HI, YO], "rejected": [YO, HI, NO]},
            Preference(Chat([HI, YO, HI, YO], n_given=1), Chat([HI, YO, HI, NO], n_given=1)),
        ),
        ({"prompt": "a", "completion": "b", "label": False}, Labelled(Completion("a", "b"), False)),
        ({"prompt": "a", "completion": "b", "label": 0.0}, Labelled(Completion("a", "b"), False)),
        ({"prompt": "a", "completion": "b", "label": "1.0"}, Labelled(Completion("a", "b"), True)),
        ({"prompt": [HI], "completion": [YO], "label": "True"}, Labelled(Chat([HI, YO], n_given=1), True)),
    ],
)  # fmt: skip
def test_what_a_record_is(record, expected):
    assert made(record) == expected


def test_messages_in_a_field_of_a_row():
    """A row can hold lists as JSON alone; elsewhere a text is a text, whatever it spells."""
    record = {"prompt": json.dumps([HI]), "completion": "Yo"}
    kind = kind_of(record, ALL)
    assert kind.make(Values(record, is_row=True)) == Chat([HI, YO], n_given=1)
    assert kind.make(Values(record)) == Completion(record["prompt"], "Yo")
    for said in ("[1, 2]", "[]", '[{"a": 1}]', "[", "5"):
        assert kind.make(Values({"prompt": said, "completion": "Yo"}, is_row=True)) == Completion(said, "Yo")
    pair = {"chosen": json.dumps([HI, YO]), "rejected": json.dumps([HI, NO])}
    found = kind_of(pair, ALL).make(Values(pair, is_row=True))
    assert found == Preference(Chat([HI, YO], n_given=1), Chat([HI, NO], n_given=1))


def test_a_kind_is_expected_once():
    with pytest.raises(UsageError) as raised:
        kind_of({"question": "a"}, ALL)
    assert str(raised.value).count("chosen, rejected") == 1


def test_keys_that_are_not_used_are_told():
    record = {"messages": [HI], "tools": None, "id": 1, "source": "x"}
    assert unused_keys(record, kind_of(record, ALL)) == ["id", "source"]
    record = {"conversations": [{"from": "human", "value": "Hi", "weight": 0}, {"from": "gpt", "value": "Yo"}]}
    assert unused_keys(record, kind_of(record, ALL)) == ["weight in conversations"]


def test_what_is_asked_for_decides_between_kinds():
    both = {"prompt": "Hi", "messages": [HI, YO], "chosen": [HI, YO], "rejected": [HI, NO]}
    assert made(both, TO_IMITATE) == Chat([HI, YO])
    assert isinstance(made(both, PREFERENCES), Preference)


@pytest.mark.parametrize(
    ("record", "wanted", "found"),
    [
        ({"question": "a", "answer": "b"}, TO_IMITATE, "has the keys question, answer; expected messages; or"),
        ({}, TO_IMITATE, "has no keys"),
        ({"text": "a"}, PREFERENCES, "so it is one of texts; expected chosen, rejected"),
        ({"prompt": "a", "completion": "b", "label": True}, TO_IMITATE, "one of labelled answers; expected"),
        (
            {"prompt": "a", "completion": "b"},
            LABELLED,
            "one of prompts with answers; expected prompt, completion, label",
        ),
        ({"prompt": "a"}, ALL, "has the keys prompt, so it is one of prompts; expected"),
    ],
)
def test_a_record_of_another_kind(record, wanted, found):
    with pytest.raises(UsageError) as raised:
        kind_of(record, wanted)
    assert found in str(raised.value)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"messages": "Hi"}, "'messages' is 'Hi'; expected a list of objects"),
        ({"messages": "5"}, "'messages' is 5; expected a list of objects"),
        ({"messages": [HI, YO], "tools": "true"}, "'tools' is True; expected a list of objects"),
        ({"prompt": "Yo", "chosen": [HI, YO], "rejected": [HI, NO]}, "do not begin with 'prompt'; expected answers"),
        ({"prompt": [YO], "chosen": [HI, YO], "rejected": [HI, NO]}, "do not begin with 'prompt'; expected answers"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": None}, "'messages' has no value"),
        ({"messages": [HI, 7]}, "messages[1] is 7; expected an object"),
        ({"messages": [HI, {"content": "x"}]}, "messages[1] has no 'role'"),
        ({"messages": [HI, model("Yo", weight=0.5)]}, "messages[1]: weight is 0.5; expected 0 or 1"),
        ({"messages": [HI, model("Yo", weight=-1)]}, "messages[1]: weight is -1; expected 0 or 1"),
        ({"prompt": "Hi", "completion": [model("Yo", weight="0")]}, "completion[0]: weight is '0'; expected 0 or 1"),
        ({"messages": [{"role": "human", "content": "Hi"}]}, "messages[0] has the role 'human'; expected 'user'"),
        ({"messages": [HI, {"role": "assistant ", "content": "Yo"}]}, "role 'assistant '; expected 'assistant'"),
        ({"prompt": [{"role": "x", "content": "Yo"}], "completion": "Yo"}, "prompt[0] has the role 'x'; expected one"),
        ({"messages": [HI, model(None)]}, "messages[1] has no 'content'; expected a text"),
        ({"messages": [HI, {"role": "assistant", "contents": "Yo"}]}, "messages[1] has no 'content'; expected a text"),
        ({"messages": [HI, model(None, tool_calls="f")]}, "messages[1].tool_calls is 'f'; expected a list of calls"),
        ({"messages": [HI, model(None, tool_calls=[{}])]}, "messages[1].tool_calls.0.name is missing; expected"),
        (
            {"messages": [HI, model(None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
            "messages[1].tool_calls.0.function.arguments is '{'; expected a JSON object",
        ),
        ({"messages": [HI], "tools": "f"}, "'tools' is 'f'"),
        ({"messages": [HI], "tools": [7]}, "tools[0] is 7"),
        ({"messages": [HI], "chat_template_kwargs": 7}, "'chat_template_kwargs' is 7; expected an object"),
        ({"messages": [HI], "chat_template_kwargs": {"messages": []}}, "'chat_template_kwargs' holds 'messages'"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "conversations[0] is from 'alien'; expected one of human",
        ),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "conversations[0] is from ['human']"),
        ({"conversations": [{"from": "human", "value": 7}]}, "conversations[0] has 7 as its 'value'"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "conversations[0] calls 'f()'; expected JSON"),
        ({"conversations": [{"from": "human", "value": "x"}], "system": 7}, "'system' is 7; expected a text"),
        ({"prompt": 7, "completion": "b"}, "'prompt' is 7; expected a text or a list of messages"),
        ({"prompt": "a", "completion": None}, "'completion' has no value"),
        ({"instruction": "a", "output": ["b"]}, "'output' is ['b']; expected a text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' is 3"),
        ({"text": 7}, "'text' is 7; expected a text"),
        ({"text": ["a"]}, "'text' is ['a']"),
        ({"prompt": "a", "chosen": "b", "rejected": [NO]}, "one of 'chosen' and 'rejected' is a text"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' has no value"),
        ({"chosen": [HI, YO], "rejected": [user("x"), NO]}, "no message in common"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "'label' is 'maybe'; expected true or false"),
        ({"prompt": "a", "completion": "b", "label": 2}, "'label' is 2"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, "'label' is 0.5"),
    ],
)
def test_values_of_the_wrong_type(record, found):
    with pytest.raises(UsageError) as raised:
        made(record)
    assert found in str(raised.value)


def test_a_prompt_keeps_what_else_its_record_says() -> None:
    found = kind_of({"prompt": "2 + 2?", "answer": 4}, PROMPTS).make(Values({"prompt": "2 + 2?", "answer": 4}))
    assert found == Prompt("2 + 2?", columns={"answer": 4})
    assert unused_keys({"prompt": "a", "answer": 4}, PROMPTS[0]) == []


@pytest.mark.parametrize("margin", [2.5, "2.5", None])
def test_a_pair_may_say_by_how_much(margin) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin}
    assert kind_of(record, RATED).make(Values(record)).margin == (margin and 2.5)
    assert kind_of(record, PREFERENCES).make(Values(record)).margin is None
    assert unused_keys(record, PREFERENCES[0]) == ["margin"]


@pytest.mark.parametrize("margin", ["far", True, [1], float("nan"), "inf"])
def test_a_margin_that_is_no_number(margin) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin}
    with pytest.raises(UsageError, match=r"'margin' is .*; expected a number"):
        kind_of(record, RATED).make(Values(record))


def test_a_margin_that_no_reward_reaches() -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e300}
    with pytest.raises(UsageError, match=r"'margin' is 1e\+300; expected a number up to 1e\+06"):
        kind_of(record, RATED).make(Values(record))


@pytest.mark.parametrize("margin", [-0.5, "-3"])
def test_a_margin_by_which_the_rejected_one_would_be_better(margin) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin}
    with pytest.raises(UsageError, match=r"'margin' is -.*'rejected' would be the better one; expected at least 0"):
        kind_of(record, RATED).make(Values(record))
