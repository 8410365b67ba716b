"""From Anthropic's messages, tools and wishes to what the engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from edgellm.errors import shown
from edgellm.server.anthropic.types import CountRequest, MessageIn, MessagesRequest
from edgellm.server.chatting import Chat, prepared
from edgellm.server.fields import check_fields
from edgellm.server.problems import ApiProblem
from edgellm.server.streams import as_json

CALL_ID = "toolu_"  # what an id of a call begins with; templates do not see it
CALLED = {"max_tokens": "max_tokens", "stop": "stop_sequences", "think_budget": "thinking.budget_tokens",
          "think": "thinking", "response_format": "output_config.format",
          "reasoning_content": "thinking"}  # fmt: skip
# The fields that clients send; caching and streaming need not be asked for here.
OF_BLOCK = {
    "text": ("type", "text", "cache_control", "citations"),
    "thinking": ("type", "thinking", "signature", "cache_control"),
    "tool_use": ("type", "id", "name", "input", "cache_control", "caller"),
    "tool_result": ("type", "tool_use_id", "content", "is_error", "cache_control"),
}
OF_TOOL = ("type", "name", "description", "input_schema", "cache_control", "strict", "eager_input_streaming",
           "input_examples", "defer_loading", "allowed_callers")  # fmt: skip
EFFORTS = ("low", "medium", "high", "xhigh", "max")  # there is nothing to follow them
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(asked: CountRequest) -> Chat:
    """Raises ApiProblem."""
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, "system")})
    for number, message in enumerate(asked.messages):
        messages += _messages(message, f"messages.{number}")
    messages = list(_turns(messages))
    keywords: dict[str, Any] = {}
    if asked.tools:
        keywords["tools"] = [_tool(tool, f"tools.{number}") for number, tool in enumerate(asked.tools)]
    if asked.tool_choice is not None:
        keywords |= _choice(asked.tool_choice, [tool.get("name") for tool in asked.tools or ()])
    keywords |= _thinking(asked.thinking)
    check_fields(asked.output_config or {}, ("format", "effort", "task_budget"), "output_config")
    effort = (asked.output_config or {}).get("effort")
    if effort is not None and effort not in EFFORTS:
        raise _wrong("output_config.effort", effort, f"one of {', '.join(EFFORTS)}")
    form = asked.output_format or (asked.output_config or {}).get("format")
    if form is not None:
        keywords["response_format"] = form
    _check_beginning(messages[-1], form, f"messages.{len(asked.messages) - 1}")
    if isinstance(asked, MessagesRequest):
        keywords["max_tokens"] = asked.max_tokens
        if asked.stop_sequences:
            keywords["stop"] = asked.stop_sequences
        for name in ("temperature", "top_p", "top_k", "when_full", "n_keep"):
            if (value := getattr(asked, name)) is not None:
                keywords[name] = value
    return Chat(asked.model, prepared(messages), keywords, called=CALLED)


def _check_beginning(last: dict[str, Any], form: Any, place: str) -> None:
    """Raises ApiProblem for a message that an answer cannot go on from."""
    content = last["content"]
    if last["role"] != "assistant" or "tool_calls" in last or not content:
        return
    if content != content.rstrip():  # tokens of words mostly begin with the space, so a model seldom goes on from one
        raise ApiProblem(
            400, f"{place} ends with white space, and the answer goes on from it, as it is the assistant's and the "
            "last; leave the white space at its end out", place,
        )  # fmt: skip
    if form is not None:
        raise ApiProblem(
            400, f"{place} has begun the answer, as it is the assistant's and the last, and output_config.format asks "
            "for all of an answer as JSON; leave one of them out", place,
        )  # fmt: skip


def _messages(message: MessageIn, place: str) -> list[dict[str, Any]]:
    """One message is several where it holds the results of calls."""
    if message.role not in ("user", "assistant", "system"):
        raise ApiProblem(400, f"{place}.role is {message.role[:40]!r}; expected user or assistant", place)
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(message.content):
        where, kind = f"{place}.content.{number}", block.get("type")
        if isinstance(kind, str) and kind in OF_BLOCK:
            check_fields(block, OF_BLOCK[kind], where)
        if kind == "text":
            texts.append(_field(block, "text", where))
        elif kind == "thinking" and message.role == "assistant":
            thoughts.append(_field(block, "thinking", where))
        elif kind == "tool_use" and message.role == "assistant":
            calls.append(_call(block, where))
        elif kind == "tool_result" and message.role == "user":
            content, is_error = block.get("content"), block.get("is_error")
            text = _text("" if content is None else content, f"{where}.content")
            if not isinstance(is_error, (bool, type(None))):
                raise _wrong(f"{where}.is_error", is_error, "true or false")
            called = _field(block, "tool_use_id", where).removeprefix(CALL_ID)
            results.append({"role": "tool", "tool_call_id": called,
                            "content": f"Error: {text}" if is_error else text})  # fmt: skip
        else:
            raise ApiProblem(
                400, f"{where} is of the type {str(kind)[:40]!r} in a message of the {message.role}; this server "
                "reads texts, tool_use and thinking of an assistant, and tool_result of a user", where,
            )  # fmt: skip
    said: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    is_empty = not texts and not thoughts and not calls
    return results if results and is_empty else [*results, said]


def _turns(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One message for each turn: Anthropic makes one of those that follow each other and have one role."""
    for role, same in groupby(messages, lambda message: message["role"]):
        each = list(same)
        if len(each) == 1 or role not in ("user", "assistant"):
            yield from each
        else:
            yield _joined(role, each)


def _joined(role: str, each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What some messages say, think and call, as blocks of one message would."""
    said: dict[str, Any] = {
        "role": role,
        "content": "\n".join(message["content"] for message in each if message["content"]),
    }
    if thoughts := [message["reasoning_content"] for message in each if "reasoning_content" in message]:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls := [call for message in each for call in message.get("tool_calls", ())]:
        said["tool_calls"] = calls
    return said


def _wrong(place: str, value: Any, expected: str) -> ApiProblem:
    return ApiProblem(400, f"{place} is {shown(value)}; expected {expected}", place)


def _field(block: dict[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ApiProblem(400, f"{place} has no {name}; expected a text", f"{place}.{name}")
    return value


def _text(content: Any, place: str) -> str:
    """A text, or blocks of text, as one."""
    if isinstance(content, str):
        return content
    texts = []
    for number, block in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(block, dict) or block.get("type") != "text":
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            raise ApiProblem(400, f"{place}.{number} is of the type {str(kind)[:40]!r}; this server reads texts",
                             place)  # fmt: skip
        check_fields(block, OF_BLOCK["text"], f"{place}.{number}")
        texts.append(_field(block, "text", f"{place}.{number}"))
    return "\n".join(texts)


def _call(block: dict[str, Any], place: str) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise ApiProblem(400, f"{place}.input is no object", place)
    function = {"name": _field(block, "name", place), "arguments": as_json(arguments)}
    return {"id": _field(block, "id", place).removeprefix(CALL_ID), "type": "function", "function": function}


def _tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise ApiProblem(400, f"{place} is of the type {str(tool['type'])[:40]!r}, which Anthropic's own servers run; "
                         "give a tool with a name and an input_schema", place)  # fmt: skip
    check_fields(tool, OF_TOOL, place)
    if not isinstance(tool.get("description"), (str, type(None))):
        raise _wrong(f"{place}.description", tool["description"], "a text")
    if not isinstance(tool.get("input_schema"), (dict, type(None))):
        raise _wrong(f"{place}.input_schema", tool["input_schema"], "a JSON schema, an object")
    function = {"name": tool.get("name"), "description": tool.get("description") or "",
                "parameters": tool.get("input_schema") or {"type": "object", "properties": {}}}  # fmt: skip
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any], names: list[Any]) -> dict[str, Any]:
    """In the engine's words. names: of the tools that there are."""
    check_fields(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
    kind = choice.get("type")
    alone = choice.get("disable_parallel_tool_use")
    if not isinstance(alone, (bool, type(None))):
        raise _wrong("tool_choice.disable_parallel_tool_use", alone, "true or false")
    only_one = {"parallel_tool_calls": False} if alone else {}
    if kind == "tool":
        if not isinstance(name := choice.get("name"), str) or name not in names:
            told = "is missing" if name is None else f"is {shown(name)}"
            listed = ", ".join(map(str, names))
            raise ApiProblem(400, f"tool_choice.name {told}; expected the name of a tool: {listed}", "tool_choice.name")
        return {"tool_choice": {"type": "function", "name": name}, **only_one}
    if isinstance(kind, str) and kind in CHOICES:
        return {"tool_choice": CHOICES[kind], **only_one}
    told = "is missing" if kind is None else f"is {shown(kind)}"
    raise ApiProblem(400, f"tool_choice.type {told}; expected auto, any, none or tool", "tool_choice.type")


def _thinking(thinking: dict[str, Any] | None) -> dict[str, Any]:
    if thinking is None:
        return {}
    kind = thinking.get("type")
    budgeted = ("budget_tokens",) if kind == "enabled" else ()
    check_fields(thinking, ("type", "display", *budgeted), "thinking")
    if kind == "disabled":
        return {"think": False}
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            told = "is missing" if budget is None else f"is {shown(budget)}"
            raise ApiProblem(400, f"thinking.budget_tokens {told}; expected a number of tokens",
                             "thinking.budget_tokens")  # fmt: skip
        return {"think": True, "think_budget": budget}
    if kind == "adaptive":
        return {}
    told = "is missing" if kind is None else f"is {shown(kind)}"
    raise ApiProblem(400, f"thinking.type {told}; expected enabled, disabled or adaptive", "thinking")
