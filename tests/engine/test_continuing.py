"""Chats whose last message is the assistant's: the answer goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils import chat_template_utils

from edgellm.engine.answer_form import AnswerForm, AnswerReader
from edgellm.engine.answer_plan import plan_of_chat
from edgellm.engine.asking import prompt_of_chat
from edgellm.errors import TemplateError, UsageError
from edgellm.params import ChatParams, SamplingParams
from edgellm.text.calls.plain import PLAIN
from edgellm.text.chat_template import ChatTemplate
from edgellm.text.provenance import Text
from edgellm.text.reasoning import Reasoning
from tests.text.calls.templates import TEMPLATES as CALLING
from tests.text.test_reasoning import TEMPLATES as THINKING

ASK = {"role": "user", "content": "zqask"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SOURCES = {**CALLING, **{name: source for name, (source, _) in THINKING.items()}}
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


def prompt(template: ChatTemplate, *messages: dict[str, Any], **wishes: Any) -> str:
    return prompt_of_chat(template, list(messages), {}, ChatParams(**wishes))


def said(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def as_transformers(source: str, *messages: dict[str, Any]) -> str:
    texts, _ = chat_template_utils.render_jinja_template(
        [list(messages)], chat_template=source, continue_final_message=True, **SPECIAL
    )
    return texts[0]


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_what_transformers_writes(name: str) -> None:
    chat = [ASK, said("zqone"), ASK, said("The river is")]
    assert prompt(ChatTemplate(SOURCES[name], SPECIAL), *chat) == as_transformers(SOURCES[name], *chat)


def test_with_the_templates_of_models(shared: Path) -> None:
    n_same = 0
    for path in sorted((shared / "templates").glob("*.jinja")):
        if path.stem.endswith("-tool_use"):  # which want tools
            continue
        source = path.read_text("utf-8")
        template = ChatTemplate(source, SPECIAL)
        assert prompt(template, ASK, said("The river is")) == as_transformers(source, ASK, said("The river is"))
        reasoning = template.reasoning
        if reasoning is not None:
            both = prompt(template, ASK, said("The river", reasoning_content="zqhm"))
            assert both.endswith("The river") and both.index("zqhm") < both.rindex(reasoning.end)
            for begun in (said(None, reasoning_content="zqhm zq"), said(f"{reasoning.start}\nzqhm zq")):
                within = prompt(template, ASK, begun)
                assert within.endswith("zqhm zq") and reasoning.is_open(within.removesuffix("zqhm zq")), path.name
        n_same += 1
    assert n_same >= 10


@pytest.mark.parametrize("name", ["stripped", "empty", "written", "channels"])
def test_a_thought_and_the_answer_after_it(name: str) -> None:
    template = ChatTemplate(THINKING[name][0])
    marks = template.reasoning
    assert marks is not None
    told = prompt(template, ASK, said("Yes and", reasoning_content="zqhm"))
    assert told == prompt(template, ASK, said(f"{marks.start}\nzqhm\n{marks.end}\n\nYes and"))
    compact = "".join(told.split())
    assert compact.endswith(f"{marks.start}zqhm{marks.end}{marks.lead}{marks.answer_start}Yesand")


def test_what_is_only_told_before_a_question_is_kept() -> None:
    """Some templates speak of tools where the last message asks; such a one is asked, and the text put behind."""
    tools = "{% if messages[-1].role == 'user' %}Be brief. {% endif %}"
    template = ChatTemplate(tools + PLAIN_TEMPLATE)
    assert prompt(template, ASK, said("The river")) == "Be brief. user: zqask\nassistant: The river"
    refusing = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('ask me') }}{% endif %}"
    template = ChatTemplate(refusing + PLAIN_TEMPLATE)
    assert prompt(template, ASK, said("The river")) == "user: zqask\nassistant: The river"
    refusing = "{% if messages | length != 2 %}{{ raise_exception('two') }}{% endif %}"
    template = ChatTemplate(refusing + PLAIN_TEMPLATE)
    assert prompt(template, ASK, said("The river")) == "user: zqask\nassistant: The river"
    with pytest.raises(TemplateError, match="two"):
        prompt(template, ASK, said("zqone"), ASK, said("The river"))


def test_white_space_stays_and_nothing_becomes_a_control_token() -> None:
    template = ChatTemplate(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}<|assistant|>"
    )
    told = prompt(template, ASK, said("  <|end|> \n"))
    assert told.endswith("<|assistant|>  <|end|> \n") and isinstance(told, Text)
    assert told.own.endswith(b"\1" * len("<|assistant|>") + b"\0" * len("  <|end|> \n"))
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    assert prompt(template, ASK, {"role": "assistant", "content": parts}).endswith("<|assistant|>One\ntwo")


def test_when_it_is_a_new_answer() -> None:
    template = ChatTemplate(CALLING["hermes"])
    call = {"id": "call00001", "type": "function", "function": {"name": "get", "arguments": {}}}
    opened = "<|im_start|>assistant\n"
    assert prompt(template, ASK).endswith(opened)
    assert prompt(template, ASK, said("Yes"), continue_final_message=False).endswith(opened)
    assert prompt(template, ASK, said("Yes", tool_calls=[call])).endswith(opened)  # results would come next
    assert prompt(template, ASK, said("")) == prompt(template, ASK)  # nothing is begun


@pytest.mark.parametrize(
    ("message", "wishes", "what"),
    [
        (ASK, {"continue_final_message": True}, "continue_final_message.*'user'"),
        (said("", tool_calls=[{"function": {"name": "get", "arguments": {}}}]), {"continue_final_message": True},
         "calls tools"),
        (said("Yes"), {"think": True}, "think is True.*has begun the answer"),
        (said("Yes"), {"think_budget": 5}, "think_budget is 5.*has begun the answer"),
        (said(None, reasoning_content="hm"), {"think": False}, "think is False.*has begun a thought"),
        (said(None, reasoning_content="hm"), {"think_budget": 0}, "think_budget is 0.*has begun a thought"),
    ],
)  # fmt: skip
def test_what_cannot_be(message: dict[str, Any], wishes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        prompt(ChatTemplate(THINKING["empty"][0]), ASK, message, **wishes)


@pytest.mark.parametrize("text", ["The river", "Say <think> is"])
def test_the_answer_goes_on_in_the_middle(model, text: str) -> None:
    """White space in front is the text's own, whatever the template knows of thoughts and calls."""
    for source in (PLAIN_TEMPLATE, THINKING["stripped"][0], THINKING["empty"][0]):
        for tools in (None, [{"type": "function", "function": {"name": "get"}}]):
            model.chat_template = ChatTemplate(source)
            ids = model.tokenize("is <think> long")  # the vocabulary puts a space in front
            left = iter(ids)
            saying = lambda ids, logits, context, left=left: (np.array([next(left)]), np.zeros(1))  # noqa: E731
            answer = model.chat([ASK, said(text)], tools=tools, samplers=[saying], max_tokens=len(ids))
            assert (answer.text, answer.reasoning) == (" is <think> long", "")


def test_a_thought_goes_on() -> None:
    template = ChatTemplate(THINKING["stripped"][0])
    marks = Reasoning("<think>", "</think>")
    reader = AnswerReader(AnswerForm(marks, is_open=True))
    pieces = [*reader.push(" and so</think>\n\nYes"), *reader.finish()]
    assert [(piece.kind, piece.text) for piece in pieces] == [("reasoning", " and so"), ("content", "Yes")]
    assert prompt(template, ASK, said(None, reasoning_content="zqhm")).endswith("<|assistant|><think>\nzqhm")


def test_what_the_answer_is_told_apart_by(model) -> None:
    def form(message: dict[str, Any]) -> Any:
        template = ChatTemplate(THINKING["stripped"][0])
        plan = plan_of_chat(
            template, [ASK, message], {}, ChatParams(), SamplingParams(), model.tokenizer, model.n_vocab
        )[1]
        assert plan.form is not None
        return plan.form.is_open, plan.form.is_over, plan.form.is_begun

    assert form(said("Yes")) == (False, True, True)
    assert form(said("Say <think>")) == (False, True, True)
    assert form(said("<think>")) == (True, False, False)
    assert form(said("<think>hm</think>")) == (False, True, False)
    assert form(said("")) == (True, False, False)


@pytest.mark.parametrize("given", [{"choices": ["a", "b"]}, {"regex": "[ab]"}])
def test_a_structure_is_that_of_what_is_new(model, given: dict[str, Any]) -> None:
    model.chat_template = ChatTemplate(PLAIN_TEMPLATE)
    assert model.chat([ASK, said("It is ")], **given).text in ("a", "b")


def test_calls_may_come_behind_it(model) -> None:
    model.chat_template = ChatTemplate(PLAIN_TEMPLATE)
    tools = [{"type": "function", "function": {"name": "get"}}]
    answer = model.chat([ASK, said("I look. ")], tools=tools, tool_choice="required", max_tokens=300, seed=1)
    assert not answer.text.strip()
    assert PLAIN.trigger in model.detokenize(answer.token_ids) and answer.tool_calls[0].name == "get"
