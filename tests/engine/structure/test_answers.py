"""Answers of a random model: whatever it would say, what it may say has the structure."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import weakref

import jsonschema
import pydantic
import pytest

import edgellm
from edgellm.engine.structure import ending
from edgellm.errors import UsageError
from tests.engine.structure.schemas import SCHEMAS

PROMPT = [1, 40, 41]


def whole(model, **keywords) -> str:
    """The first whole answer among some."""
    for seed in range(20):
        generation = model.generate(PROMPT, temperature=1.0, top_k=0, top_p=1.0, seed=seed, max_tokens=300, **keywords)
        text = "".join(generation)
        assert generation.content == text
        if generation.finish_reason == "stop":
            return text
    raise AssertionError(f"no answer came to an end; the last: {text!r}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_validates(model, name: str) -> None:
    jsonschema.validate(json.loads(whole(model, response_format=SCHEMAS[name])), SCHEMAS[name])


def test_any_object(model) -> None:
    text = whole(model, response_format={"type": "json_object"})
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("wrapped", [True, False])
def test_openais_forms_of_a_schema(model, wrapped: bool) -> None:
    schema = SCHEMAS["flat"]
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    if not wrapped:
        form = {"type": "json_schema", "name": "x", "schema": schema}
    jsonschema.validate(json.loads(whole(model, response_format=form)), schema)


def test_a_pydantic_model_and_a_dataclass(model) -> None:
    class Point(pydantic.BaseModel):
        x: int = pydantic.Field(ge=0, le=99)
        kind: str = pydantic.Field(pattern="^[a-z]{1,4}$")

    @dataclasses.dataclass
    class Line:
        thick: bool
        ends: tuple[bool, bool]

    Point.model_validate_json(whole(model, response_format=Point))
    assert set(json.loads(whole(model, response_format=Line))) == {"thick", "ends"}


PATTERNS = [r"[0-9]{2,4}", r"(ab|cd)+e", r"a/b\d", r" x\n", "é|ü", r"\w{3}", "a\nb", "", r"\/x"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_of_an_answer_matches_a_regular_expression(model, pattern: str) -> None:
    assert re.fullmatch(pattern, whole(model, regex=pattern))


@pytest.mark.parametrize("choices", [["yes", "no"], [" a", "a", "ab"], ['"', "\\", "\n"], ["é", "日本"]])
def test_one_of_some_texts(model, choices: list[str]) -> None:
    found = {whole(model, choices=choices, logit_bias={i: 0.1 * i for i in range(5)}) for _ in range(3)}
    assert found <= set(choices)


def test_where_one_way_is_left_tokens_come_without_the_model(model) -> None:
    generation = model.generate(PROMPT, choices=["a long text that can only come as it is"], temperature=0.0)
    assert "".join(generation) == "a long text that can only come as it is"
    assert generation.finish_reason == "stop"
    assert generation.token_ids == generation._answer.tokens[len(PROMPT) :]


def test_forced_tokens_have_logits_where_they_are_asked_for(model) -> None:
    generation = model.generate(PROMPT, choices=["abc"], temperature=0.0, logprobs=1)
    assert "".join(generation) == "abc"
    assert [one.token_id for one in generation.logprobs] == generation.token_ids


def test_a_closed_model_is_let_go_of(tiny_path) -> None:
    """What is made of a vocabulary does not keep the tokenizer, which has the file mapped."""
    with edgellm.load(tiny_path, n_threads=1) as loaded:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        assert "".join(loaded.generate(PROMPT, response_format=schema, max_tokens=20))
        tokenizer = weakref.ref(loaded.tokenizer)
    gc.collect()
    assert tokenizer() is None


def test_several_answers(model) -> None:
    schema = SCHEMAS["flat"]
    for generation in model.generate(PROMPT, n=3, seed=3, response_format=schema, max_tokens=300, temperature=1.0):
        text = "".join(generation)
        if generation.finish_reason == "stop":
            jsonschema.validate(json.loads(text), schema)


def test_banned_strings_are_taken_back_and_the_structure_stays(model) -> None:
    text = whole(model, regex="[a-c]{12}", banned_strings=["ab", "ca"])
    assert re.fullmatch("[a-c]{12}", text) and "ab" not in text and "ca" not in text


@pytest.mark.parametrize("max_tokens", [60, 120, 400])
def test_json_that_would_go_on_for_ever_is_brought_to_its_end(model, max_tokens: int) -> None:
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {}}, "required": ["name", "next"]}
    node["properties"]["next"] = {"anyOf": [{"$ref": "#"}, {"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]}
    for seed in range(3):
        settings = {"seed": seed, "max_tokens": max_tokens, "temperature": 1.0, "top_k": 0}
        answer = model.generate(PROMPT, response_format=node, **settings)
        text = "".join(answer)
        assert answer.finish_reason == "stop", text
        jsonschema.validate(json.loads(text), node)


def test_what_is_taken_back_is_no_part_of_what_is_open(model) -> None:
    """Brackets of tokens that a banned string took back do not count, and each answer still ends."""
    node = {
        "type": "object",
        "properties": {"n": {"type": "string"}, "next": {"type": "array", "items": {"$ref": "#"}}},
    }
    node["required"] = ["n", "next"]
    banned = [f"w{k}" for k in range(10)] + ["[{"]
    for seed in range(16):
        settings = {"seed": seed, "max_tokens": 150, "temperature": 1.0, "top_k": 0, "banned_strings": banned}
        answer = model.generate(PROMPT, response_format=node, **settings)
        jsonschema.validate(json.loads(answer.text), node)
        assert answer.finish_reason == "stop" and not any(text in answer.text for text in banned)


@pytest.mark.parametrize(
    ("in_text", "better", "worse"),
    [
        (True, '"', "}"), (True, '"', '",'), (True, '"', 'a"'), (True, 'a"', "a"), (True, '"}', '","'),
        (True, '"', '\\"'),
        (False, "}", "},"), (False, "]}", "] , {"), (False, "}", '"'), (False, '"', ","), (False, "null", "1"),
        (False, "1", ","), (False, ",", "{"), (False, "}", " "), (False, "] ", "["),
    ],
)  # fmt: skip
def test_which_token_is_nearer_to_the_end(in_text: bool, better: str, worse: str) -> None:
    rank = ending._inside if in_text else ending._outside
    assert rank(better.encode()) < rank(worse.encode())


def test_an_answer_that_is_cut_says_so(model) -> None:
    generation = model.generate(PROMPT, regex="[ab]{50}", max_tokens=5)
    assert len("".join(generation)) <= 5 and generation.finish_reason == "length"


@pytest.mark.parametrize(
    ("keywords", "parameter", "words"),
    [
        ({"regex": "a", "choices": ["b"]}, "choices", "cannot go with regex"),
        ({"regex": "a", "stop": ["b"]}, "stop", "cannot go with regex"),
        ({"choices": []}, "choices", "is empty"),
        ({"regex": "("}, "regex", "unclosed group"),
        ({"regex": "(?=a)b"}, "regex", "look-around"),
        ({"regex": r"[^\s\S]"}, "regex", "describes no text"),
        ({"response_format": {"type": "strin"}}, "response_format", "strin"),
        ({"response_format": {"type": "array", "uniqueItems": True}}, "response_format", '"uniqueItems"'),
        ({"response_format": {"not": {"type": "string"}}}, "response_format", '"not"'),
        ({"response_format": {"if": {}, "then": {}}}, "response_format", '"if"'),
        ({"response_format": {"type": "string", "format": "smell"}}, "response_format", "smell"),
        ({"response_format": {"$ref": "https://example.org/a.json"}}, "response_format", "nothing is fetched"),
        ({"response_format": {"items": {"$ref": "other.json"}}}, "response_format", "nothing is fetched"),
        ({"response_format": {"$ref": "#/$defs/none"}}, "response_format", "which is not in it"),
        ({"response_format": {"$ref": "#"}}, "response_format", "no text satisfies"),
        ({"response_format": {"type": "integer", "minimum": 5, "maximum": 3}}, "response_format", "no text satisfies"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "expected the schema"),
        (
            {"response_format": {"type": "grammar"}},
            "response_format",
            "is 'grammar'; expected text, json_object or json_",
        ),
        ({"response_format": {"type": "text", "a": 1}}, "response_format", "unknown field response_format.a; expected"),
        ({"response_format": {"type": "json_object", "a": 1}}, "response_format", "unknown field response_format.a; "),
        (
            {"response_format": {"type": "json_object", "schema": 5}},
            "response_format",
            "schema is 5; expected a JSON sch",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "a": 1}}},
            "response_format",
            "unknown field response_format.json_schema.a; expected schema, name, strict, description",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}, "a": 1}},
            "response_format",
            "unknown field response_format.a; expected type, json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "schema": {}, "strict": "a"}},
            "response_format",
            "response_format.strict is 'a'; expected true or false",
        ),
        ({"choices": [str(i) for i in range(2001)]}, "choices", "choices has 2001 texts; up to 2000"),
        ({"response_format": set}, "response_format", "no JSON schema"),
        ({"grammar": 'root ::= root "a"'}, "grammar", "left-recursive"),
        ({"grammar": "start: none"}, "grammar", "does not define"),
        ({"grammar": 'start: "a" ('}, "grammar", "cannot be used"),
    ],
)
def test_what_cannot_be_followed(model, keywords: dict, parameter: str, words: str) -> None:
    """Told at once, before anything is computed."""
    with pytest.raises(UsageError) as told:
        model.generate(PROMPT, **keywords)
    line = str(told.value)
    assert told.value.parameter == parameter and words in line and parameter in line
    assert "\n" not in line and len(line) < 300


@pytest.mark.parametrize("schema", [{"multipleOf": "a"}, {"pattern": "("}])
def test_of_a_schema_that_is_none_only_the_fault_is_told(model, schema: dict) -> None:
    with pytest.raises(UsageError, match=r"^response_format is a JSON schema that cannot be used: [^|]{5,50}$"):
        model.generate(PROMPT, response_format=schema)


def test_a_schema_beside_json_object_is_followed(model) -> None:
    form = {"type": "json_object", "schema": {"const": {"a": 1}}}
    assert json.loads(whole(model, response_format=form)) == {"a": 1}


def test_as_many_choices_as_there_may_be(model) -> None:
    choices = [f"{number:x}" for number in range(2000)]
    assert whole(model, choices=choices) in choices


def test_without_the_package_it_is_said_how_to_install_it(model, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    monkeypatch.setattr("edgellm.engine.structure.vocabulary._made", {})
    with pytest.raises(UsageError, match=r'pip install "edgellm\[structure\]"'):
        model.generate(PROMPT, regex="a")
