"""Python functions as tools, and schemas of others."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from edgellm.engine.tools import Tools, tool_schema
from edgellm.errors import UsageError


@dataclasses.dataclass
class Place:
    city: str


def google(city: str, unit: Literal["c", "f"] = "c", *, days: int = 1) -> str:
    """Tell the weather.

    For any city of the world.

    Args:
        city (str): The city,
            in English.
        unit: celsius or fahrenheit

    Returns:
        A sentence: what it is like.
    """
    return city


def numpy_style(a: float, b: list[int] | None = None) -> float:
    """Add.

    Parameters
    ----------
    a : float
        The first.
    b
        The others.

    Returns
    -------
    float
    """
    return a


def sphinx(place: Place, more: dict[str, Any]) -> None:
    """Go.

    :param place: where to
    :param dict more: what else
    :returns: nothing
    """


def bare() -> None:
    pass


def test_googles_style() -> None:
    assert tool_schema(google) == {
        "type": "function",
        "function": {
            "name": "google",
            "description": "Tell the weather.\n\nFor any city of the world.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city, in English."},
                    "unit": {"enum": ["c", "f"], "description": "celsius or fahrenheit"},
                    "days": {"type": "integer"},
                },
                "additionalProperties": False,
                "required": ["city"],
            },
        },
    }


def test_other_styles() -> None:
    function = tool_schema(numpy_style)["function"]
    assert function["description"] == "Add."
    told = {key: kind.get("description") for key, kind in function["parameters"]["properties"].items()}
    assert told == {"a": "The first.", "b": "The others."}
    function = tool_schema(sphinx)["function"]
    properties = function["parameters"]["properties"]
    assert function["description"] == "Go." and properties["more"]["description"] == "what else"
    assert properties["place"]["$ref"] in "#/$defs/Place" and "Place" in function["parameters"]["$defs"]
    assert tool_schema(bare)["function"]["description"] == ""


def star(*args: int) -> None: ...


def untyped(a) -> None: ...  # type: ignore[no-untyped-def]


def strange(a: complex) -> None: ...


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([star], "args cannot be given by name"),
        ([untyped], "parameter a has no type"),
        ([strange], "no JSON schema"),
        ([lambda x: x], "name"),
        ([3], "expected functions"),
        ([Place], "expected functions"),
        (google, "a list of functions"),
        ("google", "a list of functions"),
        ([google, google], "google twice"),
        ([{"name": "a b"}], "'a b'"),
        ([{"function": 3}], "expected a schema"),
        ([{"type": "retrieval"}], "expected a schema"),
        ([{"name": "f", "parameters": {"type": "array"}}], "of an object"),
        ([{"name": "f", "parameters": {"properties": {"a": {"$ref": "http://a.b"}}}}], "nothing is fetched"),
    ],
)
def test_what_is_no_tool(tools: Any, words: str) -> None:
    with pytest.raises(UsageError) as told:
        Tools(tools)
    assert words in str(told.value) and told.value.parameter == "tools"


def test_schemas_as_openai_has_them() -> None:
    plain = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}
    tools = Tools([plain, {"type": "function", "function": {"name": "g"}}])
    assert list(tools.arguments) == ["f", "g"] and tools.arguments["g"] == {"type": "object", "properties": {}}
    assert tools.schemas[0]["function"]["parameters"]["type"] == "object"


def test_which_calls_may_come() -> None:
    tools = Tools([google, bare])
    assert tools.chosen(None)[0] == tools.chosen("auto")[0] == "auto"
    assert tools.chosen("none")[0] == "none" and tools.chosen("required")[0] == "required"
    for name in ("bare", {"type": "function", "function": {"name": "bare"}}):
        choice, arguments = tools.chosen(name)
        assert choice == "required" and list(arguments) == ["bare"]
    for wrong in ("other", 3, {"function": {}}, {"type": "function"}, [], {"type": "custom", "custom": {"name": "b"}},
                  {"type": "function", "function": {"name": "bare", "x": 1}}, {"type": "web", "name": "bare"},
                  {"type": "function", "function": 3}):  # fmt: skip
        with pytest.raises(UsageError, match="tool_choice"):
            tools.chosen(wrong)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_some_of_the_tools_may_be_called(mode: str) -> None:
    tools = Tools([google, bare, numpy_style])
    some = [{"type": "function", "function": {"name": "bare"}}, {"type": "function", "name": "google"}]
    for choice in ({"mode": mode, "tools": some}, {"allowed_tools": {"mode": mode, "tools": some}}):
        found, arguments = tools.chosen({"type": "allowed_tools", **choice})
        assert found == mode and list(arguments) == ["bare", "google"]
    for wrong, words in (
        ({"mode": "none", "tools": some}, "mode is 'none'; expected auto or required"),
        ({"mode": mode, "tools": []}, "expected a list of tools"),
        ({"mode": mode}, "expected a list of tools"),
        ({"mode": mode, "tools": [{"type": "mcp", "name": "bare"}]}, "tools.0 is"),
        ({"mode": mode, "tools": [{"type": "function", "name": "x"}]}, "with a tool: google, bare, numpy_style"),
        ({"allowed_tools": {"mode": mode, "tools": some, "y": 1}}, "unknown field tool_choice.allowed_tools.y"),
        ({"allowed_tools": 3}, "tool_choice.allowed_tools is 3"),
    ):
        with pytest.raises(UsageError) as caught:
            tools.chosen({"type": "allowed_tools", **wrong})
        assert words in str(caught.value) and caught.value.parameter == "tool_choice"
