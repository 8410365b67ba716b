"""From the items of /v1/responses to messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgellm.errors import shown
from edgellm.server.chatting import Chat, form_of, prepared, think_of
from edgellm.server.fields import check_fields, check_role, text_parts
from edgellm.server.openai.response_types import InputTokensRequest, ResponsesRequest
from edgellm.server.problems import ApiProblem
from edgellm.text.messages import call_of

CALLED = {"max_tokens": "max_output_tokens", "response_format": "text.format", "think": "reasoning.effort",
          "messages": "input"}  # fmt: skip
LOGPROBS = "message.output_text.logprobs"  # what `include` asks for them by
# Those that clients send; the last ones mean nothing here.
OF_ITEM = {
    "message": ("type", "role", "content", "id", "status", "phase", "end_turn"),
    "reasoning": ("type", "content", "summary", "encrypted_content", "id", "status"),
    "function_call": ("type", "call_id", "name", "arguments", "id", "status", "namespace"),
    "function_call_output": ("type", "call_id", "output", "id", "status"),
}
OF_TOOL = ("type", "name", "description", "parameters", "strict")
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # the latter: there is nothing to encrypt


def chat_of(asked: InputTokensRequest, before: list[dict[str, Any]]) -> Chat:
    """before: the items of the conversation so far. Raises ApiProblem."""
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    messages += messages_of([*before, *asked.items])
    think = think_of(asked.reasoning.effort, "reasoning.effort") if asked.reasoning else None
    wishes: dict[str, Any] = {
        "response_format": form_of(asked.text.format, "text.format") if asked.text else None,
        "tools": [_tool(number, tool) for number, tool in enumerate(asked.tools or ())] or None,
        "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "continue_final_message": False,  # an item is whole: what comes is another one
        "think": think,
    }
    keywords: dict[str, Any] = {}
    if isinstance(asked, ResponsesRequest):
        keywords |= asked.sampling()
        wishes |= {"max_tokens": asked.max_output_tokens, "logprobs": _logprobs(asked)}
    keywords |= {name: wish for name, wish in wishes.items() if wish is not None}
    return Chat(asked.model, prepared(messages), keywords, called=CALLED)


def _logprobs(asked: ResponsesRequest) -> int | None:
    """For how many tokens at each place; None for none at all. Raises ApiProblem."""
    include = asked.include or []
    if unknown := [name for name in include if name not in INCLUDED]:
        raise ApiProblem(400, f"include holds {unknown[0][:60]!r}; this server knows {', '.join(INCLUDED)}", "include")
    if asked.top_logprobs and LOGPROBS not in include:
        raise ApiProblem(400, f"top_logprobs is given, but include has no {LOGPROBS}; add it", "top_logprobs")
    return (asked.top_logprobs or 0) if LOGPROBS in include else None


def messages_of(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as messages of a chat: what one answer consists of is one message again."""
    found: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            role, content = item.get("role"), item.get("content")
            if not isinstance(role, str) or content is None:
                raise ApiProblem(400, f"input.{number} has no role and content", "input")
            if not isinstance(content, (str, list)):
                place = f"input.{number}.content"
                raise ApiProblem(400, f"{place} is {shown(content)}; expected a text or a list of parts", place)
            check_role(role, f"input.{number}")
            check_fields(item, OF_ITEM[kind], f"input.{number}")
            content = text_parts(content, f"input.{number}.content")
            if role == "assistant":
                answer = _answer(found, needs="content")
                answer["content"] = content
            else:
                found.append({"role": role, "content": content})
        elif kind == "reasoning":
            check_fields(item, OF_ITEM[kind], f"input.{number}")
            if thought := _thought(item, f"input.{number}"):
                found.append({"role": "assistant", "content": "", "reasoning_content": thought})
        elif kind == "function_call":
            check_fields(item, OF_ITEM[kind], f"input.{number}")
            name, arguments = call_of({key: item.get(key) for key in ("name", "arguments")}, f"input.{number}")
            function = {"name": name, "arguments": arguments}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _answer(found).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            check_fields(item, OF_ITEM[kind], f"input.{number}")
            output = item.get("output")
            if not isinstance(output, (str, list)) or not isinstance(item.get("call_id"), str):
                raise ApiProblem(400, f"input.{number} has no call_id and output", "input")
            output = text_parts(output, f"input.{number}.output")
            found.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
        else:
            raise ApiProblem(
                400, f"input.{number} is of the type {str(kind)[:40]!r}; this server reads message, reasoning, "
                "function_call and function_call_output", "input",
            )  # fmt: skip
    return found


def _thought(item: dict[str, Any], place: str) -> str:
    """What was thought, as it was or in short. Raises ApiProblem for parts that hold no texts."""
    texts: dict[str, str] = {}
    for name in ("content", "summary"):
        parts = [] if item.get(name) is None else item[name]
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ApiProblem(400, f"{place}.{name} is {shown(parts)}; expected a list of parts", f"{place}.{name}")
        for number, part in enumerate(parts):
            if not isinstance(part.get("text"), str):
                where = f"{place}.{name}.{number}.text"
                told = "is missing" if part.get("text") is None else f"is {shown(part['text'])}"
                raise ApiProblem(400, f"{where} {told}; expected a text", where)
        texts[name] = "\n".join(part["text"] for part in parts)
    return texts["content"] or texts["summary"]


def _answer(found: list[dict[str, Any]], needs: str = "tool_calls") -> dict[str, Any]:
    """The message that the next part of an answer belongs to."""
    if found and found[-1]["role"] == "assistant" and not (needs == "content" and found[-1].get("content")):
        return found[-1]
    found.append({"role": "assistant", "content": ""})
    return found[-1]


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiProblem(400, f"tools.{number} is of the type {str(tool.get('type'))[:40]!r}; this server knows "
                         "functions", "tools")  # fmt: skip
    check_fields(tool, OF_TOOL, f"tools.{number}")
    function = {key: tool[key] for key in OF_TOOL if key != "type" and tool.get(key) is not None}
    return {"type": "function", "function": function}
