"""What a model writes as a value can be told as JSON, whatever it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.text.calls import Call, derived_syntax
from edgellm.text.calls.plain import PLAIN
from edgellm.text.calls.values import MOST, decoded, plain_value
from edgellm.text.chat_template import ChatTemplate
from tests.text.calls.templates import TEMPLATES


def told(value: Any) -> Any:
    """As the server tells it, which raises for what is no JSON."""
    return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e999", MOST), ("-1e999", -MOST), ("[1, 1e999]", [1, MOST]), (r'"\ud800"', "\ufffd"),
        (r'"\ud83d\ude00"', "\U0001f600"), (r'{"\ud800": ["\ud83d"]}', {"\ufffd": ["\ufffd"]}),
        (' {"a": 1}\n', {"a": 1}),
    ],
)  # fmt: skip
def test_values_of_json(text: str, value: Any) -> None:
    assert decoded(text) == told(decoded(text)) == plain_value(text) == value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]", "{", "1 2", ""])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        decoded(text)
    assert plain_value(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 'a')", [1, "a"]), ("{'a': None, 'b': True}", {"a": None, "b": True}), ("b'x'", "b'x'"),
        ("{1, 2}", "{1, 2}"), ("{1: 2}", "{1: 2}"), ("1j", "1j"), ("...", "..."), (r"'\ud800'", "\ufffd"),
        ("[1e999]", [MOST]), ("(1e999,)", "(1e999,)"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_values_of_python(text: str, value: Any) -> None:
    assert plain_value(text) == told(plain_value(text)) == value


@given(st.text())
def test_any_text_is_some_value(text: str) -> None:
    told(plain_value(text))


@pytest.mark.parametrize("name", ["hermes", "qwen coder", "quoted"])
def test_calls_with_such_values(name: str) -> None:
    syntax = derived_syntax(ChatTemplate(TEMPLATES[name])) or PLAIN
    schemas = {"get": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "array"}}}}
    text = syntax.write([Call("get", {"x": 48151623, "y": [42108151]})])
    text = text.replace("48151623", "1e999").replace("42108151", "-1e999")
    found = syntax.read(text, schemas)
    assert found is not None and told(found[0][0].arguments) == {"x": MOST, "y": [-MOST]}
    assert math.isfinite(found[0][0].arguments["x"])
