"""Chats with tools and thoughts on a random model: its text is noise, and its calls are right all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import edgellm
from edgellm.engine.answer_plan import plan_of_chat
from edgellm.errors import TemplateError, UsageError
from edgellm.params import ChatParams
from edgellm.text.calls import Call
from edgellm.text.calls.plain import PLAIN
from edgellm.text.chat_template import ChatTemplate
from tests.arch import tiny
from tests.text.calls.templates import TEMPLATES
from tests.text.test_reasoning import TEMPLATES as THINKING

ASKED = [{"role": "user", "content": "What is the weather?"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"type": "string", "maxLength": 5, "pattern": "^[a-z]*$"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "x", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "nothing", "description": "y", "parameters": NOTHING}},
]
SCHEMAS = {"get_weather": WEATHER, "nothing": NOTHING}
RANDOM = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def ended(model, **keywords):
    for seed in range(30):
        answer = model.chat(ASKED, seed=seed, max_tokens=400, **{**RANDOM, **keywords})
        text = "".join(answer)
        if answer.finish_reason == "stop":
            return answer, text
    raise AssertionError(f"no answer came to an end; the last: {text!r}")


@pytest.mark.parametrize("name", [*TEMPLATES, "told in text"])
@pytest.mark.parametrize("choice", ["required", "get_weather", "nothing"])
def test_calls_that_must_come(model, name: str, choice: str) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    model.chat_template = ChatTemplate(TEMPLATES.get(name, plain))
    # What a thought begun in the prompt says comes first, and noise has no end.
    keywords = {"think": False} if name == "deepseek" else {}
    answer, text = ended(model, tools=TOOLS, tool_choice=choice, **keywords)
    assert answer.tool_calls and not text.strip()
    for call in answer.tool_calls:
        # A text between tags is any text, and what is quoted in a string any JSON.
        if name not in ("qwen coder", "glm", "invoke", "llama 4", "gemma 4", "quoted"):
            jsonschema.validate(call.arguments, SCHEMAS[call.name])
        assert choice in ("required", call.name)
        assert set(call.arguments) <= set(SCHEMAS[call.name]["properties"])
    assert answer.message["tool_calls"][0]["function"]["name"] == answer.tool_calls[0].name


@pytest.mark.parametrize("name", ["hermes", "mistral", "glm", "told in text"])
def test_one_call_at_most(model, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model.chat_template = template = ChatTemplate(TEMPLATES.get(name, "{{ messages[-1].content }}"))
    answer, _ = ended(model, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert len(answer.tool_calls) == 1
    # Where there is no grammar, a model that would go on is stopped.
    monkeypatch.setattr("edgellm.engine.asking.find_spec", lambda name: None)
    calls = [Call("nothing", {}), Call("get_weather", {"city": "Rome"})]
    ids = model.tokenize("I look. " + (template.call_syntax or PLAIN).write(calls))
    for only_one in (True, False):
        keywords = {"tools": TOOLS, "parallel_tool_calls": not only_one, "max_tokens": len(ids)}
        answer = model.chat(ASKED, samplers=[_saying(ids)], **keywords)
        assert "".join(answer).strip() == "I look."
        assert [call.name for call in answer.tool_calls] == (["nothing"] if only_one else ["nothing", "get_weather"])
        assert answer.finish_reason == ("stop" if only_one else "length")


def _saying(ids: list[int]) -> Any:
    """A step that lets a model say what it is to say."""
    left = iter(ids)
    return lambda ids, logits, context: (np.array([next(left)]), np.zeros(1))


def _says(model, text: str, **keywords: Any) -> Any:
    """An answer of a model that says a text; its vocabulary puts a space in front."""
    ids = model.tokenize(text)
    tools = [{"type": "function", "function": {"name": "get"}}]
    return model.chat(ASKED, tools=tools, samplers=[_saying(ids)], **{"max_tokens": len(ids), **keywords})


@pytest.mark.parametrize("streams", [False, True])
def test_half_of_a_mark_at_a_cut(model, monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    monkeypatch.setattr("edgellm.engine.asking.find_spec", lambda name: None)  # any text may come
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])

    def text_of(answer: Any) -> str:
        return "".join(piece.text for piece in answer.pieces()) if streams else answer.text

    cut = _says(model, "I look. <tool_c")
    assert (text_of(cut).strip(), cut.finish_reason) == ("I look.", "length")
    cut = _says(model, "I look. <tool_call> {", stop="_call")
    assert (text_of(cut).strip(), cut.finish_reason) == ("I look.", "stop")
    whole = _says(model, "if a <\nb", stop="\n")
    assert text_of(whole).strip() == "if a <"


def test_a_template_that_wants_more_than_a_schema_must_have(model) -> None:
    told = "{% for p in t.function.parameters.properties.values() %}{{ p.type + p.description }},{% endfor %}"
    source = "{% if tools %}{% for t in tools %}{{ t.function.name }}: " + told + "{% endfor %}{% endif %}"
    source += "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>"
    source += '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</call>{% endfor %}'
    model.chat_template = template = ChatTemplate(source + "{% endfor %}")
    assert template.call_syntax is not None
    given = (template, ASKED, {}, ChatParams(tools=TOOLS), edgellm.SamplingParams(), model.tokenizer, model.n_vocab)
    assert plan_of_chat(*given)[0].startswith("get_weather: string,integer,string,nothing: What")
    refusing = "{% if m.content == 'bad' %}{{ raise_exception('no such words') }}{% endif %}"
    model.chat_template = ChatTemplate(source + refusing + "{% endfor %}")
    with pytest.raises(TemplateError, match="no such words"):
        model.chat([{"role": "user", "content": "bad"}], tools=TOOLS)


@pytest.fixture
def roomy(tmp_path):
    """A tiny model with a context for the longest templates, some of which say a lot about tools."""
    checkpoint = tiny.llama()
    checkpoint.metadata["llama.context_length"] = 8192
    with edgellm.load(checkpoint.save(tmp_path / "roomy.gguf"), n_threads=2) as loaded:
        yield loaded


def test_the_whole_round_with_the_templates_of_models(roomy, shared: Path) -> None:
    """Told of tools, called, and told of the result: those that write calls, and those to which it is told in text."""
    model = roomy
    paths = sorted((shared / "templates").glob("*.jinja"))
    for path in paths:
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        model.chat_template = template = ChatTemplate(path.read_text("utf-8"), special)
        keywords = {"think": False} if template.reasoning is not None else {}
        answer, text = ended(model, tools=TOOLS, tool_choice="get_weather", **keywords)
        call = answer.tool_calls[0]
        assert call.name == "get_weather" and not text.strip(), path.name
        jsonschema.validate(call.arguments, WEATHER)
        result = {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": "zqsunny"}
        wishes = ChatParams(tools=TOOLS)
        given = (template, [*ASKED, answer.message, result], {}, wishes, edgellm.SamplingParams())
        prompt, _ = plan_of_chat(*given, model.tokenizer, model.n_vocab)
        called = prompt.index("get_weather", prompt.index("What is the weather?"))
        # The calls of before stay in what is read when no more may come, and when nobody speaks of tools any more.
        for last in (ChatParams(tools=TOOLS, tool_choice="none"), ChatParams()):
            after, _ = plan_of_chat(template, given[1], {}, last, given[4], model.tokenizer, model.n_vocab)
            assert after.index(str(call.arguments["city"])) < after.index("zqsunny"), path.name
        assert called < prompt.index(str(call.arguments["city"]), called) < prompt.index("zqsunny"), path.name
    assert len(paths) >= 12


def test_a_template_takes_its_own_calls_back(model) -> None:
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    answer, _ = ended(model, tools=TOOLS, tool_choice="required")
    call = answer.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": "sunny"}
    prompt = model.chat_template.render([*ASKED, answer.message, result], tools=TOOLS)
    assert json.dumps(call.arguments) in prompt and prompt.index(call.name) < prompt.index("sunny")


@pytest.mark.parametrize("choice", ["auto", None])
def test_calls_that_may_come_follow_the_syntax_from_their_beginning(model, choice) -> None:
    """The trigger as the first token of the answer: a random model would never go on like that by itself."""
    model.chat_template = ChatTemplate(TEMPLATES["llama 3"])
    brace = next(i for i in range(model.n_vocab) if model.tokenizer.token_bytes(i) == b"{")
    answer, text = ended(model, tools=TOOLS, tool_choice=choice, logit_bias={brace: 30.0, 1: -30.0})
    assert [call.name for call in answer.tool_calls] and text == ""


def test_text_is_free_where_calls_may_come(model) -> None:
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    answer = model.chat(ASKED, tools=TOOLS, seed=1, max_tokens=20, **RANDOM)
    assert "".join(answer) == answer.content != "" and answer.tool_calls == []


def test_a_structure_beside_tools(model) -> None:
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    for seed in range(4):
        answer = model.chat(ASKED, tools=TOOLS, choices=["yes", "no"], seed=seed, max_tokens=300, **RANDOM)
        text = "".join(answer)
        assert text in ("yes", "no") or answer.tool_calls or answer.finish_reason == "length"


@pytest.mark.parametrize("name", [name for name in THINKING if name != "none"])
def test_a_thought_has_a_budget_and_the_answer_its_structure(model, name: str) -> None:
    model.chat_template = ChatTemplate(THINKING[name][0])
    thinks = {"think": True} if name in ("empty", "told") else {}
    reasoning = model.chat_template.reasoning
    assert reasoning is not None
    n_thoughts = 0
    for seed in range(6):
        answer = model.chat(ASKED, choices=["yes", "no"], think_budget=6, seed=seed, max_tokens=200, **thinks, **RANDOM)
        text = "".join(answer)
        assert answer.finish_reason == "stop" and text in ("yes", "no")
        n_thoughts += bool(answer.reasoning)
        assert len(answer.reasoning.encode()) <= 6 * 4
        assert answer.message.get("reasoning_content", "") == answer.reasoning.strip()
    if reasoning.is_open(model.chat_template.render(ASKED)):
        assert n_thoughts == 6


@pytest.mark.parametrize("name", [name for name in THINKING if name != "none"])
def test_without_thoughts(model, name: str) -> None:
    model.chat_template = ChatTemplate(THINKING[name][0])
    for keywords in ({"think": False}, {"think_budget": 0}):
        answer = model.chat(ASKED, choices=["yes", "no"], max_tokens=20, **keywords, **RANDOM)
        assert "".join(answer) in ("yes", "no") and answer.reasoning == ""


def test_pieces_tell_thoughts_from_what_is_said(model) -> None:
    model.chat_template = ChatTemplate(THINKING["stripped"][0])
    answer = model.chat(ASKED, choices=["yes"], think_budget=5, seed=2, **RANDOM)
    kinds = [piece.kind for piece in answer.pieces()]
    assert kinds[-1] == "content" and answer.content == "yes"
    assert sorted(kinds, reverse=True) == kinds  # first all of the thought


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"think": True}, "knows of no thoughts"),
        ({"think_budget": 3}, "knows of no thoughts"),
        ({"think": "yes"}, "think is 'yes'"),
        ({"think_budget": -1}, "think_budget is -1"),
        ({"think": False, "think_budget": 3}, "cannot go with"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": [], "tool_choice": "f"}, "no tools"),
        ({"tools": TOOLS, "tool_choice": "f"}, "get_weather, nothing"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}]}, '"not"'),
        ({"tool": []}, "did you mean tools"),
    ],
)
def test_what_cannot_be(model, keywords: dict, words: str) -> None:
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    with pytest.raises(UsageError) as told:
        model.chat(ASKED, **keywords)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_without_the_package_tools_are_read_and_not_forced(model, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    monkeypatch.setattr("edgellm.engine.asking.find_spec", lambda name: None)
    model.chat_template = ChatTemplate(TEMPLATES["hermes"])
    assert "".join(model.chat(ASKED, tools=TOOLS, max_tokens=5, temperature=0))
    with pytest.raises(UsageError, match=r"edgellm\[structure\]"):
        model.chat(ASKED, tools=TOOLS, tool_choice="required")
