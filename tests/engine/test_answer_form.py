"""The parts of an answer, however its text is cut into pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgellm.engine.answer_form import AnswerForm, AnswerReader
from edgellm.text.calls import Call
from edgellm.text.calls.plain import PLAIN
from edgellm.text.chat_template import ChatTemplate
from edgellm.text.reasoning import Reasoning
from tests.text.calls.templates import TEMPLATES

THINK = Reasoning("<think>", "</think>")
CHANNELS = Reasoning("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>")
TOOLS: dict[str, dict[str, Any]] = {"get": {"type": "object", "properties": {"x": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "get", "arguments": {"x": 1}}\n</tool_call>'
LLAMA = ChatTemplate(TEMPLATES["llama 3"]).call_syntax


def read(form: AnswerForm, text: str, size: int) -> tuple[str, str, list[Any], list[str]]:
    """Thought, what is said, arguments of calls, and the pieces that came before the end."""
    reader = AnswerReader(form)
    pieces = [piece for i in range(0, len(text), size) for piece in reader.push(text[i : i + size])]
    early = [piece.text for piece in pieces]
    pieces += reader.finish()
    parts = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "content")}
    return parts["reasoning"], parts["content"], [call.arguments for call in reader.calls], early


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "thought", "said", "calls"),
    [
        (AnswerForm(THINK), "Hello < world <thin", "", "Hello < world <thin", []),
        (AnswerForm(THINK), "<think>\nhm\n</think>\n\nYes.", "\nhm\n", "Yes.", []),
        (AnswerForm(THINK), "\n<think>hm", "hm", "", []),
        (AnswerForm(THINK, is_open=True), "hm </think> Yes", "hm ", "Yes", []),
        (AnswerForm(THINK, is_open=True), "no end </thin", "no end </thin", "", []),
        (AnswerForm(THINK), "Say <think> is a tag", "", "Say <think> is a tag", []),
        (AnswerForm(THINK), "<think>a</think>b</think>c", "a", "b</think>c", []),
        (AnswerForm(CHANNELS), f"{CHANNELS.start}hm<|end|><|start|>assistant<|channel|>final<|message|>Yes",
         "hm", "Yes", []),
        (AnswerForm(CHANNELS), "<|channel|>final<|message|>Yes", "", "Yes", []),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), f"Let me see. {CALL}", "", "Let me see.", [{"x": 1}]),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), f"{CALL}\n{CALL}", "", "", [{"x": 1}, {"x": 1}]),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), f"{CALL} and more", "", " and more", [{"x": 1}]),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), f"{CALL}\n{CALL[:30]}", "", f"\n{CALL[:30]}", [{"x": 1}]),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), CALL[:30], "", CALL[:30], []),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), "a <tool_call> that is none", "", "a<tool_call> that is none", []),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), '{"name": "get", "arguments": {"x": 2}}', "", "", [{"x": 2}]),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), '{"name": "Ann"}', "", '{"name": "Ann"}', []),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), '{"a": 1}', "", '{"a": 1}', []),
        (AnswerForm(calls=LLAMA, arguments=TOOLS), '{"name": "get", "parameters": {"x": 3}}', "", "", [{"x": 3}]),
        (AnswerForm(calls=LLAMA, arguments=TOOLS), 'No: {"name": "get", "parameters": {}}', "",
         'No: {"name": "get", "parameters": {}}', []),
        (AnswerForm(calls=LLAMA, arguments=TOOLS), "{ no JSON", "", "{ no JSON", []),
        (AnswerForm(THINK, calls=PLAIN, arguments=TOOLS), f"<think>call?</think>\n{CALL}", "call?", "", [{"x": 1}]),
    ],
)  # fmt: skip
def test_parts(form: AnswerForm, text: str, thought: str, said: str, calls: list[Any], size: int) -> None:
    found = read(form, text, size)
    assert (found[0], "".join(found[1].split()), found[2]) == (thought, "".join(said.split()), calls)


def test_text_is_shown_as_it_comes() -> None:
    early = read(AnswerForm(THINK, calls=PLAIN, arguments=TOOLS), "One two three four", 4)[3]
    assert "".join(early) == "One two three four" and len(early) >= 4
    thought = read(AnswerForm(THINK, is_open=True), "one two three", 3)[3]
    assert "".join(thought) == "one two three" and len(thought) >= 4


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("name", [*TEMPLATES, "told in text"])
def test_one_call_ends_the_answer(name: str, size: int) -> None:
    syntax = ChatTemplate(TEMPLATES[name]).call_syntax if name in TEMPLATES else PLAIN
    assert syntax is not None
    calls = [Call("get", {"x": 12}), Call("get", {"x": 3})]
    form = AnswerForm(calls=syntax, arguments=TOOLS, one_call=True)
    assert read(form, syntax.write(calls[:1]), size)[1:3] == ("", [{"x": 12}])
    if syntax.again is not None:
        text, reader = syntax.write(calls), AnswerReader(form)
        n_read = next(i for i in range(0, len(text), size) if [*reader.push(text[i : i + size])] or reader.is_over)
        assert [call.arguments for call in reader.calls] == [{"x": 12}]
        assert n_read + size < len(text) or size > len(text)  # before the second call is whole
        assert not list(reader.finish())
        assert len(read(replace(form, one_call=False), text, size)[2]) == 2


@pytest.mark.parametrize("calls", [PLAIN, LLAMA])
def test_a_call_that_is_cut_off_with_its_answer_is_not_shown(calls) -> None:
    text = calls.write([Call("get", {"x": 1})])
    form = AnswerForm(calls=calls, arguments=TOOLS)
    for n in range(len(calls.trigger), len(text)):
        reader = AnswerReader(form)
        pieces = [*reader.push(text[:n]), *reader.finish(is_cut=True)]
        assert "".join(piece.text for piece in pieces) == ""
    for none in ("{ no JSON", '{"name": "Ann", "a'):
        reader = AnswerReader(form)
        pieces = [*reader.push(none), *reader.finish(is_cut=True)]
        assert "".join(piece.text for piece in pieces) == none


def test_calls_before_one_that_is_cut_off_stay() -> None:
    two = PLAIN.write([Call("get", {"x": 1}), Call("get", {"x": 2})])
    for n in range(two.index("</tool_call>"), two.index("2}")):
        reader = AnswerReader(AnswerForm(calls=PLAIN, arguments=TOOLS))
        pieces = [*reader.push(two[:n]), *reader.finish(is_cut=True)]
        assert "".join(piece.text for piece in pieces) == ""
        assert [call.arguments for call in reader.calls] == [{"x": 1}]


def cut(form: AnswerForm, text: str, size: int = 1, behind: str = "") -> tuple[str, str]:
    """Thought and content of an answer that is cut off."""
    reader = AnswerReader(form)
    pieces = [piece for i in range(0, len(text), size) for piece in reader.push(text[i : i + size])]
    pieces += reader.finish(True, behind)
    thought, said = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "content"))
    return thought, said


WITH_TOOLS = AnswerForm(THINK, calls=PLAIN, arguments=TOOLS)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "before", "mark", "shown"),
    [
        (WITH_TOOLS, "", THINK.start, ("", "")),
        (WITH_TOOLS, "<think>hm", THINK.end, ("hm", "")),
        (WITH_TOOLS, "<think>hm</think>\n\nYes.\n", PLAIN.trigger, ("hm", "Yes.")),
        (replace(WITH_TOOLS, is_begun=True, is_over=True), " so", PLAIN.trigger, ("", " so")),
        (AnswerForm(calls=PLAIN, arguments=TOOLS), "", '{"name": "', ("", "")),
        (AnswerForm(CHANNELS), "", CHANNELS.start, ("", "")),
        (AnswerForm(CHANNELS), "", CHANNELS.answer_start, ("", "")),
        (AnswerForm(CHANNELS), f"{CHANNELS.start}hm{CHANNELS.end}", CHANNELS.lead + CHANNELS.answer_start, ("hm", "")),
    ],
)
def test_half_of_a_mark_is_not_shown(
    form: AnswerForm, before: str, mark: str, shown: tuple[str, str], size: int
) -> None:
    for n in range(1, len(mark)):
        assert cut(form, before + mark[:n], size) == shown, mark[:n]


@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_half_of_a_mark_is_shown_though_it_is_cut(size: int) -> None:
    for text in ("a < b", "<tools", "So <tool_calls", "so ", '{"age": 3', "</think"):
        assert "".join(cut(replace(WITH_TOOLS, is_over=True), text, size)) == text


def test_a_stop_string_tells_whether_a_mark_would_have_come() -> None:
    """What came behind the text is known there: the stop string itself."""
    form = AnswerForm(calls=PLAIN, arguments=TOOLS)
    assert cut(form, "I look. <tool", behind="_call>") == ("", "I look.")
    assert cut(form, "I look. <tool", behind="_") == ("", "I look.")
    assert cut(form, "I look. <tool", behind="_call>\n{") == ("", "I look.")
    assert cut(form, "I look. <tool_call>", behind="\n") == ("", "I look.")
    assert cut(form, "if a <", behind="\n") == ("", "if a <")
    assert cut(form, "I look. <tool", behind="box>") == ("", "I look. <tool")
    assert cut(form, '{"na', behind="me") == ("", "")
    assert cut(form, '{"na', behind="tion") == ("", '{"na')
    assert cut(AnswerForm(THINK, is_open=True), "hm</th", behind="in") == ("hm", "")
    assert cut(AnswerForm(THINK, is_open=True), "hm</th", behind="e") == ("hm</th", "")
