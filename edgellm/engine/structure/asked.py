"""From what a person asks for to a grammar, in the syntax of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.engine.structure.json_schema import checked_schema, compact
from edgellm.engine.structure.schemas import schema_of
from edgellm.errors import UsageError, shown
from edgellm.params import STRUCTURES, SamplingParams


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
    if isinstance(value, Mapping) and value.get("type") in ("text", "json_object", "json_schema"):
        if value["type"] == "text":
            return None
        value = {"type": "object"} if value["type"] == "json_object" else _inner_schema(value)
    schema = dict(value) if isinstance(value, Mapping) else schema_of("response_format", value)
    return f"start: {json_rule('response_format', schema)}\n"


def _inner_schema(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema in OpenAI's {"type": "json_schema", "json_schema": {"schema": ...}}, of either of its interfaces."""
    inner = value.get("json_schema", value)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise UsageError(
            f"response_format is {shown(value)}; expected the schema under json_schema, schema",
            parameter="response_format",
        )
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
