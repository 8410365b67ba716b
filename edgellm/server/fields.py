"""Fields of the parts of a request that are no kind of their own: which there are, and what they may hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from edgellm.errors import shown
from edgellm.server.problems import ApiProblem
from edgellm.text import ChatTemplate
from edgellm.text.messages import REASONING, ROLES

# What else a message holds is for the model's chat template, if it knows of it.
OF_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "audio",
              "function_call", "parsed", "cache_control", *REASONING)  # fmt: skip
OF_CALL = ("id", "type", "function", "index", "cache_control")
OF_FUNCTION = ("name", "arguments", "index", "parsed_arguments")  # what clients put together of streams, and Ollama's
NOTHING = ("audio", "function_call")  # clients send them as null
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
BESIDE_TEXT = ("type", "cache_control", "annotations", "logprobs", "citations")


def check_fields(found: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raises ApiProblem for a field that nobody knows."""
    for name in found:
        if name not in known:
            name = f"{place}.{name}"[:200]
            raise ApiProblem(400, f"unknown field {name}", name, "unknown_field")


def check_role(role: str, place: str, template: ChatTemplate | None = None) -> None:
    """Raises ApiProblem for a role that neither people nor the template know."""
    if role in ROLES or (role and template is not None and _knows_role(template, role)):
        return
    raise ApiProblem(
        400, f"{place}.role is {shown(role)}; expected one of system, developer, user, assistant, tool", f"{place}.role"
    )


def check_messages(messages: Iterable[Mapping[str, Any]], template: ChatTemplate) -> None:
    """Raises ApiProblem for roles and fields that the template of a model would drop."""
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        check_role(message["role"], place, template)
        check_fields(message, [name for name in message if name in OF_MESSAGE or uses(template, name)], place)
        for name in NOTHING:
            if message.get(name) is not None and not uses(template, name):
                raise ApiProblem(400, f"{place}.{name} is given, which this server does not read", f"{place}.{name}")
        calls = message.get("tool_calls")
        for n, call in enumerate(calls if isinstance(calls, list) else ()):  # what else it is, is refused later
            _check_call(call, f"{place}.tool_calls.{n}", template)


def _check_call(call: Any, place: str, template: ChatTemplate) -> None:
    """Raises ApiProblem for fields of a call that the template of a model would drop."""
    function = call.get("function") if isinstance(call, Mapping) else None
    for found, known, where in ((call, OF_CALL, place), (function, OF_FUNCTION, f"{place}.function")):
        if isinstance(found, Mapping):
            check_fields(found, [name for name in found if name in known or uses(template, name)], where)


def text_parts(content: Any, place: str) -> Any:
    """A content as templates want it: of its parts, the texts that they hold. Raises ApiProblem for what holds none."""
    if not isinstance(content, list):
        return content
    return [_text_part(part, f"{place}.{number}") for number, part in enumerate(content)]


def _text_part(part: Any, place: str) -> Any:
    if not isinstance(part, dict):
        raise ApiProblem(400, f"{place} is {shown(part)}; expected an object with type and text", place)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in TEXTS:
        told = "is missing" if kind is None else f"is {shown(kind)}"
        raise ApiProblem(400, f"{place}.type {told}; this server reads parts of the type text", f"{place}.type")
    name = TEXTS[kind]
    check_fields(part, (*BESIDE_TEXT, name), place)
    text = part.get(name)
    if not isinstance(text, str):
        told = "is missing" if text is None else f"is {shown(text)}"
        raise ApiProblem(400, f"{place}.{name} {told}; expected a text", f"{place}.{name}")
    return {"type": "text", "text": text}


def check_variables(variables: Mapping[str, Any], template: ChatTemplate, place: str) -> None:
    """Raises ApiProblem for variables that a template does not use; what is false or null is obeyed by that."""
    for name, value in variables.items():
        if value is not None and value is not False and not uses(template, name):
            where = name if name == "documents" else f"{place}.{name}"
            raise ApiProblem(
                400, f"{where} is given, but this model's chat template does not use it; leave it out", where
            )


def _knows_role(template: ChatTemplate, role: str) -> bool:
    """Whether a template compares roles with one; a word of its texts is none."""
    return any(re.search(rf"""(['"]){re.escape(role)}\1""", source) for source in template.sources)


def uses(template: ChatTemplate, name: str) -> bool:
    """Whether a name stands in a template."""
    return any(re.search(rf"\b{re.escape(name)}\b", source) for source in template.sources)
