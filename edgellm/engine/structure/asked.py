"""From what a person asks for to a grammar, in the syntax of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm import checks
from edgellm.engine.structure.json_schema import TYPES, checked_schema, compact
from edgellm.engine.structure.schemas import schema_of
from edgellm.errors import UsageError, shown
from edgellm.params import STRUCTURES, SamplingParams

TYPE: dict[str, type | None] = {"type": None}
BESIDE_SCHEMA: dict[str, type | None] = {"schema": None, "name": str, "strict": bool, "description": str}


@dataclass(frozen=True)
class Asked:
    """A structure, and what a person called it, for messages.

    grammar:  in Lark, whose first rule is `start`, or several in llguidance's JSON, of which the first counts.
    """

    name: str
    grammar: str

    @property
    def for_guidance(self) -> str:
        """As llguidance takes it."""
        if self.grammar.startswith("{"):
            return self.grammar
        return json.dumps({"grammars": [{"lark_grammar": self.grammar}]})


def asked_of(params: SamplingParams) -> Asked | None:
    """The structure that parameters ask for; None for plain text. Raises UsageError for what cannot be one."""
    for name in STRUCTURES:
        value = getattr(params, name)
        if value is not None and (grammar := _READERS[name](value)) is not None:
            return Asked(name, grammar)
    return None


def _of_format(value: Any) -> str | None:
    """A JSON schema as a dict, OpenAI's forms of it, a Pydantic model or a dataclass."""
    if not isinstance(value, Mapping):
        schema: Mapping[str, Any] | None = schema_of("response_format", value)
    elif isinstance(kind := value.get("type"), str) and kind not in TYPES:
        schema = _schema_in(value, kind)
    else:
        schema = value
    return None if schema is None else f"start: {json_rule('response_format', schema)}\n"


def _schema_in(value: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The schema in a form of OpenAI's interfaces, or of llama.cpp's; None for plain text.

    Chats have {"type": "json_schema", "json_schema": {"schema": ...}}, responses and messages have
    {"type": "json_schema", "schema": ...}, and to {"type": "json_object"} llama.cpp adds a schema.
    """
    if kind == "text":
        checks.fields("response_format", value, TYPE, "response_format")
        return None
    if kind == "json_object":
        checks.fields("response_format", value, {**TYPE, "schema": None}, "response_format")
        schema = value.get("schema")
        return {"type": "object"} if schema is None else _as_schema("response_format.schema", schema)
    if kind != "json_schema":
        raise UsageError(
            f"response_format.type is {shown(kind)}; expected text, json_object or json_schema, or a JSON schema",
            parameter="response_format",
        )
    if value.keys().isdisjoint(("schema", "json_schema")):
        raise UsageError(
            f"response_format is {shown(value)}; expected the schema under schema, or under json_schema.schema",
            parameter="response_format",
        )
    if "json_schema" not in value:
        checks.fields("response_format", value, {**TYPE, **BESIDE_SCHEMA}, "response_format")
        return _as_schema("response_format.schema", value.get("schema"))
    name, inner = "response_format.json_schema", value["json_schema"]
    checks.fields("response_format", value, {**TYPE, "json_schema": None}, "response_format")
    if not isinstance(inner, Mapping):
        raise UsageError(f"{name} is {shown(inner)}; expected a name and a schema", parameter="response_format")
    checks.fields(name, inner, BESIDE_SCHEMA, "response_format")
    return _as_schema(f"{name}.schema", inner.get("schema"))


def _as_schema(name: str, schema: Any) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        what = "is missing" if schema is None else f"is {shown(schema)}"
        raise UsageError(f"{name} {what}; expected a JSON schema, an object", parameter="response_format")
    return schema


def json_rule(name: str, schema: Mapping[str, Any]) -> str:
    """A JSON schema as a part of a rule. Raises UsageError for what it must not hold."""
    return f"%json {json.dumps(compact(checked_schema(name, schema)))}"


def _of_grammar(text: str) -> str:
    from edgellm.engine.structure import gbnf, lark

    text = gbnf.to_lark(text) if gbnf.is_gbnf(text) else text
    lark.check("grammar", text)
    return text


def _of_regex(pattern: str) -> str:
    # Between slashes a slash is escaped, and a line feed is written as one.
    slashed = re.sub(r"\\.|/", lambda found: found[0] if len(found[0]) > 1 else r"\/", pattern, flags=re.DOTALL)
    slashed = slashed.replace("\n", r"\n")
    return f"start: /{slashed}/\n" if pattern else 'start: ""\n'


def _of_choices(texts: tuple[str, ...]) -> str:
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\n"


_READERS: dict[str, Callable[[Any], str | None]] = {
    "response_format": _of_format,
    "grammar": _of_grammar,
    "regex": _of_regex,
    "choices": _of_choices,
}
