"""What the words of a JSON schema may hold, by JSON Schema 2020-12 and the drafts before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from edgellm.errors import shown

# Words whose value holds schemas: by name, in a list, or one.
BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
IN_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
ONE = (
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
SIZES = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
DEEPEST = 100


class Inner(NamedTuple):
    """A schema somewhere in another one. place: the way to it, such as properties.city; "" for the whole."""

    place: str
    schema: Any


def inner_schemas(schema: Any, place: str = "", depth: int = 0) -> Iterator[Inner]:
    """A schema and all in it, whatever stands where one is expected. Raises ValueError for one that nests deeply."""
    if depth > DEEPEST:
        raise ValueError(f"it nests more than {DEEPEST} deep")
    yield Inner(place, schema)
    for word, value in schema.items() if isinstance(schema, dict) else ():
        inner: list[tuple[Any, Any]] = []
        if word in BY_NAME and isinstance(value, dict):
            inner = [(f"{word}.{key}", one) for key, one in value.items()]
        elif (word in IN_LIST or word == "items") and isinstance(value, list):
            inner = [(f"{word}.{i}", one) for i, one in enumerate(value)]
        elif word in ONE:
            inner = [(word, value)]
        for step, one in inner:
            yield from inner_schemas(one, below(place, step), depth + 1)


def below(place: str, step: str) -> str:
    """The way to a word or a schema in the schema at a place."""
    return f"{place}.{step}" if place else step


def wrong_word(found: Inner) -> str | None:
    """The first word of a schema that holds what it cannot, in words; None where there is none.

    Programs write null for a schema that they do not have; where one is needed, llguidance refuses it.
    """
    if found.schema is None or isinstance(found.schema, bool):
        return None
    if not isinstance(found.schema, dict):
        return _told(found.place, found.schema, "a JSON schema, an object")
    for word, value in found.schema.items():
        expected, fits = _KINDS.get(word, (None, None))
        if fits is not None and not fits(value):
            return _told(below(found.place, word), value, str(expected))
    return None


def _told(place: str, value: Any, expected: str) -> str:
    return f"{place[:200]} is {shown(value)}; expected {expected}"


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value in TYPES


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (
        f"one of {', '.join(TYPES)}, or a list of those",
        lambda value: _is_type(value) or (isinstance(value, list) and all(map(_is_type, value))),
    ),
    "required": (
        "a list of names of properties",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    "enum": ("a list of values", lambda value: isinstance(value, list)),
    **dict.fromkeys(("format", "pattern", "$ref"), ("a text", _is_text)),
    **dict.fromkeys(SIZES, ("a whole number of at least 0", _is_size)),
    **dict.fromkeys(BY_NAME, ("an object of schemas by name", lambda value: isinstance(value, dict))),
    **dict.fromkeys(IN_LIST, ("a list of schemas", lambda value: isinstance(value, list))),
}
