"""Twenty schemas of the kinds that people write, nested and recursive ones among them, each with an end."""

from __future__ import annotations

from typing import Any

WORD = {"type": "string", "minLength": 1, "maxLength": 12, "pattern": "^[A-Za-z ]+$"}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 999}


def thing(**properties: Any) -> dict[str, Any]:
    """An object with all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def some(items: dict[str, Any], least: int = 0, most: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


# A tree that is three deep at most: what is recursive by $ref needs an end for models that find none.
def tree(depth: int) -> dict[str, Any]:
    return thing(name=WORD, children=some(tree(depth - 1), most=2)) if depth else thing(name=WORD)


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": thing(name=WORD, age=NUMBER),
    "nested": thing(person=thing(name=WORD, address=thing(city=WORD, zip={"type": "string", "pattern": "^[0-9]{5}$"}))),
    "list of words": some(WORD, 1),
    "list of objects": thing(items=some(thing(name=WORD, price={"type": "number", "minimum": 0, "maximum": 100}), 1)),
    "optional": {"type": "object", "properties": {"a": WORD, "b": NUMBER, "c": {"type": "boolean"}}, "required": ["b"]},
    "enum": thing(colour={"enum": ["red", "green", "blue"]}, size={"enum": [1, 2, 3, None]}),
    "const": thing(kind={"const": "point"}, x=NUMBER, y=NUMBER),
    "any of": {"anyOf": [thing(text=WORD), thing(number=NUMBER)]},
    "nullable": thing(name={"type": ["string", "null"], "maxLength": 8}, nick={"anyOf": [WORD, {"type": "null"}]}),
    "recursive": {
        "$defs": {"node": thing(value=NUMBER, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]})},
        "$ref": "#/$defs/node",
    },
    "mutual": {
        "$defs": {
            "folder": thing(name=WORD, files=some({"$ref": "#/$defs/file"}, most=2)),
            "file": thing(name=WORD, size=NUMBER),
        },
        "$ref": "#/$defs/folder",
    },
    "tree": tree(3),
    "tuple": {"type": "array", "prefixItems": [WORD, NUMBER, {"type": "boolean"}], "items": False, "minItems": 3},
    "map": {"type": "object", "patternProperties": {"^[a-z]{1,6}$": NUMBER}, "additionalProperties": False,
            "minProperties": 1, "maxProperties": 3},
    "date": thing(when={"type": "string", "format": "date"}, at={"type": "string", "format": "time"}),
    "bounds": thing(low={"type": "integer", "minimum": -5, "exclusiveMaximum": 5}, high={"type": "number", "minimum": 0,
                                                                                          "maximum": 1}),
    "multiples": thing(even={"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 100}),
    "matrix": some(some(NUMBER, 2, 2), 1, 2),
    "one of": {"oneOf": [thing(kind={"const": "cat"}, lives=NUMBER), thing(kind={"const": "dog"}, name=WORD)]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": NUMBER}, "required": ["a"]},
                         {"type": "object", "properties": {"b": WORD}, "required": ["b"]}]},
}  # fmt: skip
