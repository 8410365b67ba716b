"""JSON schemas of Python types, and what is found out about schemas before they become grammars."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pydantic
import pytest

from edgellm.engine.structure.json_schema import checked_schema, compact
from edgellm.engine.structure.schemas import schema_of
from edgellm.errors import UsageError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Leaf:
    name: str
    note: Annotated[str, "what is said of it"] = ""
    hidden: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Node:
    leaf: Leaf
    children: list[Node]
    by_name: dict[str, int] = dataclasses.field(default_factory=dict)


class Partly(TypedDict, total=False):
    a: typing.Required[int] if hasattr(typing, "Required") else int  # type: ignore[valid-type]
    b: str


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, [1], ["1", 1.5, None]),
        (float, [1, 1.5], ["1"]),
        (bool, [True], [0]),
        (str, ["a"], [1]),
        (Any, [1, None, {}], []),
        (list[int], [[], [1]], [["a"], {}]),
        (Sequence[str], [["a"]], [[1]]),
        (dict[str, bool], [{"a": True}], [{"a": 1}]),
        (Mapping[str, list[int]], [{"a": [1]}], [{"a": 1}]),
        (tuple[int, str], [[1, "a"]], [[1], [1, "a", 2], ["a", 1]]),
        (tuple[int, ...], [[], [1, 2]], [["a"]]),
        (Literal["a", 3, None], ["a", 3, None], ["b"]),
        (Colour, ["red"], ["RED"]),
        (typing.Optional[int], [1, None], ["a"]),  # noqa: UP045
        (typing.Union[int, str], [1, "a"], [None]),  # noqa: UP007
        (int | None, [1, None], ["a"]),
        (datetime.date, ["2020-01-31"], [1]),
        (uuid.UUID, ["x"], [1]),
        (Leaf, [{"name": "a"}, {"name": "a", "note": "b"}], [{}, {"name": 1}, {"name": "a", "hidden": 1}]),
        (
            Node,
            [{"leaf": {"name": "a"}, "children": [{"leaf": {"name": "b"}, "children": []}]}],
            [{"leaf": {"name": "a"}}, {"leaf": {"name": "a"}, "children": [1]}],
        ),
        (Partly, [{"a": 1}, {"a": 1, "b": "c"}], [{"a": "1"}]),
        (list[Leaf], [[{"name": "a"}]], [[{}]]),
    ],
)
def test_a_type_allows_its_values(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    schema = schema_of("response_format", kind)
    checked_schema("response_format", schema)
    for value in right:
        jsonschema.validate(value, schema)
    for value in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, schema)


def test_what_is_said_of_a_field_is_kept() -> None:
    assert schema_of("x", Leaf)["$defs"]["Leaf"]["properties"]["note"]["description"] == "what is said of it"


def test_pydantic_says_its_own() -> None:
    class Model(pydantic.BaseModel):
        a: int

    assert schema_of("x", Model) == Model.model_json_schema()
    assert "a" in schema_of("x", list[Model])["items"]["properties"]


@pytest.mark.parametrize("kind", [complex, set, dict[int, str], object(), 3, Literal[b"a"], "Node", lambda: 0])
def test_what_has_no_schema_is_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="no JSON schema") as told:
        schema_of("response_format", kind)
    assert told.value.parameter == "response_format"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://a.b/c"}, "nothing is fetched"),
        ({"properties": {"a": {"items": {"$ref": "file:///etc/passwd"}}}}, "nothing is fetched"),
        ({"$ref": 3}, "$ref is 3; expected a text"),
        ({"$ref": "#/definitions/a"}, "not in it"),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "no text satisfies"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "no text satisfies"),
        ({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}, "no text satisfies"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "no text satisfies"),
        ({"enum": [float("nan")]}, "no JSON schema"),
        ({"enum": [{1, 2}]}, "no JSON schema"),
    ],
)
def test_schemas_that_lead_nowhere(schema: dict, words: str) -> None:
    with pytest.raises(UsageError) as told:
        checked_schema("response_format", schema)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": None}, "type is None; expected one of string, number, integer, boolean, null, object, array, or a"),
        ({"type": ["string", 5]}, "type is ['string', 5]; expected one of string"),
        ({"required": None}, "required is None; expected a list of names of properties"),
        ({"required": [["a"]]}, "required is [['a']]; expected a list of names of properties"),
        ({"properties": {"a": {"type": "text"}}}, "properties.a.type is 'text'; expected one of string"),
        ({"properties": {"a": 5}}, "properties.a is 5; expected a JSON schema, an object"),
        ({"anyOf": 5}, "anyOf is 5; expected a list of schemas"),
        ({"anyOf": [{}, {"items": {"minLength": -1}}]}, "anyOf.1.items.minLength is -1; expected a whole number of at"),
        ({"format": []}, "format is []; expected a text"),
        ({"enum": "a"}, "enum is 'a'; expected a list of values"),
    ],
)
def test_words_that_hold_what_they_cannot_are_named_with_their_place(schema: dict, told: str) -> None:
    with pytest.raises(UsageError) as error:
        checked_schema("response_format", {"type": "object", **schema})
    assert str(error.value).startswith(f"response_format holds a JSON schema whose {told}")


@pytest.mark.parametrize("schema", [{"items": None}, {"properties": {"a": None}}, {"properties": {"a": True}}, {}])
def test_schemas_that_programs_leave_empty(schema: dict) -> None:
    assert checked_schema("response_format", {"type": "object", **schema}) == {"type": "object", **schema}


def test_a_schema_too_deep() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="no JSON schema"):
        checked_schema("response_format", schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"$ref": {"type": "string"}}},
        {"const": {"$ref": "http://a.b/c"}},
        {"enum": [{"$ref": "#/none"}]},
        {"$id": "http://a.b/c", "$defs": {"x": {"$id": "d", "type": "null"}}, "$ref": "d"},
        {"$defs": {"a/b~c": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c"},
        {"type": ["array", "null"], "minItems": 1, "items": {"$ref": "#"}},
        {"properties": {"a": {"$ref": "#"}}},
    ],
)
def test_schemas_that_end(schema: dict) -> None:
    assert checked_schema("x", schema) == schema


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"properties": {"a": {}}}, True),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
        ({"properties": {"a": {}}, "minProperties": 2}, False),
        ({"properties": {"a": {}}, "patternProperties": {"^b": {}}}, False),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, False),
        ({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, False),
        ({}, False),
    ],
)
def test_properties_without_a_name_are_left_out_where_none_can_be_missed(schema: dict, closed: bool) -> None:
    assert (compact(schema).get("additionalProperties") is False) == closed


def test_formats_are_narrower_patterns() -> None:
    import re

    from edgellm.engine.structure.json_schema import FORMATS

    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    times = ["00:00:00Z", "23:59:59.123456+02:00", "12:30:01.5-23:59"]
    dates = ["2024-02-28", "1999-12-31", "0001-01-01", "2023-11-30"]
    for name, right in {"time": times, "date": dates, "date-time": [f"{d}T{t}" for d in dates for t in times]}.items():
        for text in right:
            assert re.fullmatch(FORMATS[name], text) and checker.conforms(text, name)
    for name, text in [("time", "24:00:00Z"), ("time", "1:00:00Z"), ("date", "2023-02-30"), ("date", "0000-01-01"),
                       ("date", "2023-13-01"), ("time", "10:00:00.1234567Z")]:  # fmt: skip
        assert not re.fullmatch(FORMATS[name], text)
    assert compact({"type": "string", "format": "date", "pattern": "^2"})["format"] == "date"
