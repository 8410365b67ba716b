"""Tools for models whose template knows none: told in plain text, in the form that most models have seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.text.calls.arguments import JsonArguments
from edgellm.text.calls.syntax import Call, CallSyntax
from edgellm.text.messages import ASSISTANTS, call_of, check_calls, check_objects, joined_parts

PLAIN = CallSyntax(
    first='<tool_call>\n{"name": "',
    order=("name", "arguments"),
    middle=('", "arguments": ',),
    again='}\n</tool_call>\n<tool_call>\n{"name": "',
    last="}\n</tool_call>",
    arguments=JsonArguments(),
)

_INTRODUCTION = """You can call functions to help the user. These are the functions, as JSON:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments, like this:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


def told_in_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], takes_system: bool
) -> list[dict[str, Any]]:
    """The messages with tools, calls and results as texts.

    tools:         that the model may call now; perhaps none any more.
    takes_system:  whether the template takes a message of the system; otherwise the tools are told in the first one.

    Raises UsageError for a call that is none, and for a content that is an object.
    """
    check_calls(messages)
    check_objects(messages)
    told: list[dict[str, Any]] = []
    for message in map(dict, messages):
        role = message.get("role")
        if role in ASSISTANTS and message.get("tool_calls"):
            message["content"] = _with_calls(message)
            del message["tool_calls"]
        elif role == "tool":
            text = f"<tool_response>\n{_content(message)}\n</tool_response>"
            if told and told[-1].get("tool results"):
                told[-1]["content"] += f"\n{text}"
                continue
            message = {"role": "user", "content": text, "tool results": True}
        told.append(message)
    for message in told:
        message.pop("tool results", None)
    if not tools:
        return told
    introduction = _INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    role = "system" if takes_system else "user"
    if not told or told[0].get("role") not in (role, "system"):
        if takes_system:
            return [{"role": "system", "content": introduction}, *told]
        return told
    content = told[0].get("content")
    if isinstance(content, list):
        told[0]["content"] = [{"type": "text", "text": introduction}, *content]
    else:
        told[0]["content"] = f"{content}\n\n{introduction}" if takes_system else f"{introduction}\n\n{content}"
    return told


def _with_calls(message: Mapping[str, Any]) -> str:
    text = PLAIN.write([Call(*call_of(call, "tool_calls")) for call in message["tool_calls"]])
    content = _content(message)
    return f"{content}\n{text}" if content else text


def _content(message: Mapping[str, Any]) -> Any:
    """What a message says, as a text."""
    return joined_parts([dict(message)])[0].get("content") or ""
