"""JSON schemas before they become grammars: what they must not hold, and how answers are written.

Schemas follow JSON Schema 2020-12 and the drafts before it (json-schema.org), as far as llguidance knows their words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from edgellm.engine.structure.schema_words import TYPES, inner_schemas, wrong_word
from edgellm.errors import UsageError, shown

COMBINING = ("allOf", "anyOf", "oneOf", "$ref", "not", "if", "dependentSchemas", "patternProperties", "minProperties")
# An answer has no white space that its reader does not need, so that it cannot go on for ever.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# RFC 3339, but for what other programs cannot read: more than six digits of a second, the year 0, a 29th of February.
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_DATE = (
    r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
FORMATS = {"time": f"^{_TIME}$", "date": f"^{_DATE}$", "date-time": f"^{_DATE}T{_TIME}$"}


def checked_schema(name: str, schema: Mapping[str, Any], what: str = "a JSON schema") -> dict[str, Any]:
    """A schema as plain JSON whose references all lead to schemas inside it, and that some finite text satisfies.

    name: the parameter that it was given for. what: the schema, for messages. Raises UsageError.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(schema, allow_nan=False))
        wrong = next(filter(None, map(wrong_word, inner_schemas(plain))), None)
    except (TypeError, ValueError, RecursionError) as problem:
        raise _refused(name, f"is no JSON schema: {problem}") from None
    if wrong is not None:
        raise _refused(name, f"holds {what} whose {wrong}")
    every = _subschemas(plain)
    names = {schema["$id"]: schema for schema in every if isinstance(schema.get("$id"), str)}
    names |= {f"#{schema['$anchor']}": schema for schema in every if isinstance(schema.get("$anchor"), str)}
    targets: dict[int, Any] = {}
    for inner in every:
        for word in ("$ref", "$dynamicRef", "$recursiveRef"):
            reference = inner.get(word)
            if reference is None:
                continue
            if word != "$ref":
                raise _refused(name, f'uses "{word}", which is not supported; use "$ref"')
            targets[id(inner)] = _target(name, plain, names, reference)
    if not _can_end(plain, every, targets):
        raise _refused(name, "is a schema that no text satisfies: something that it requires has no end, or is false")
    return plain


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema for a grammar: with our white space, times that all can read, and no properties without a name.

    What satisfies it satisfies the other one too. Where schemas are combined, it stays as it is, for another part may
    name more properties.
    """
    schema = json.loads(json.dumps(schema))
    every = _subschemas(schema)
    for inner in every:
        if inner.get("format") in FORMATS and "pattern" not in inner:
            inner["pattern"] = FORMATS[inner.pop("format")]
    if not any("allOf" in inner or ("$ref" in inner and _is_more_than_ref(inner)) for inner in every):
        alternatives = {id(one) for s in every if "properties" in s for w in ("anyOf", "oneOf") for one in s.get(w, ())}
        for inner in every:
            properties = inner.get("properties")
            if (
                properties is not None
                and "additionalProperties" not in inner
                and id(inner) not in alternatives
                and not any(word in inner for word in COMBINING)
                and set(inner.get("required", ())) <= set(properties)
            ):
                inner["additionalProperties"] = False
    return {**schema, "x-guidance": SPACING}


def _is_more_than_ref(schema: dict[str, Any]) -> bool:
    return any(word in schema for word in ("properties", "required", "type", "anyOf", "oneOf"))


def _subschemas(schema: Any) -> list[dict[str, Any]]:
    """A schema and all in it, but for those that are only true or false."""
    return [inner.schema for inner in inner_schemas(schema) if isinstance(inner.schema, dict)]


def _target(name: str, root: dict[str, Any], names: Mapping[str, Any], reference: Any) -> Any:
    if reference in names:
        return names[reference]
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _refused(
            name, f"refers to {shown(reference)}, outside of it; nothing is fetched: put that schema under $defs"
        )
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise _refused(name, f"refers to {shown(reference)}, which is not in it")
    return found


def _can_end(root: dict[str, Any], every: list[dict[str, Any]], targets: Mapping[int, Any]) -> bool:
    """Whether some finite value satisfies a schema: what can, grows until nothing more does."""
    known: set[int] = set()

    def can(schema: Any) -> bool:
        return id(schema) in known if isinstance(schema, dict) else schema is not False

    def follows(schema: dict[str, Any]) -> bool:
        if id(schema) in targets and not can(targets[id(schema)]):
            return False
        if not all(map(can, schema.get("allOf", ()))):
            return False
        for word in ("anyOf", "oneOf"):
            if schema.get(word) and not any(map(can, schema[word])):
                return False
        if "const" in schema or "enum" in schema:
            return True
        types = schema.get("type", TYPES)
        return any(_type_can(schema, kind, can) for kind in ([types] if isinstance(types, str) else types))

    while True:
        more = {id(schema) for schema in every if id(schema) not in known and follows(schema)}
        if not more:
            return id(root) in known
        known |= more


def _type_can(schema: dict[str, Any], kind: Any, can: Any) -> bool:
    if kind == "object":
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True) if "patternProperties" not in schema else True
        return all(can(properties.get(key, others)) for key in schema.get("required", ()))
    if kind == "array":
        least = schema.get("minItems", 0)
        first = schema.get("prefixItems", ())
        items = schema.get("items", True)
        if isinstance(items, list):
            return True
        return all(map(can, first[:least])) and (least <= len(first) or can(items))
    return True


def _refused(name: str, text: str) -> UsageError:
    return UsageError(f"{name} {text}", parameter=name)
