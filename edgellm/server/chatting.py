"""A chat as the engine takes it, whichever interface it came by, and what there is to tell of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from edgellm.engine import Generation, Model
from edgellm.engine.piece import Piece
from edgellm.errors import FormatError
from edgellm.formats import strict_json
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server
from edgellm.server.streams import as_json
from edgellm.text.calls import Call

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass
class Chat:
    """What is asked.

    messages:  as OpenAI has them, but with the arguments of calls as JSON has them. keywords: those of `Model.chat`.
    called:    what the interface calls keywords of ours.
    one_call:  the answer may hold one call at most.
    """

    model: str | None
    messages: list[dict[str, Any]]
    keywords: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    called: Mapping[str, str] = field(default_factory=dict)
    tells_progress: bool = False
    one_call: bool = False
    idle: float | None = None

    def make(self, model: Model) -> list[Generation]:
        return model.chat(self.messages, n=self.n, **self.keywords)

    def calls_of(self, generation: Generation) -> list[Call]:
        return generation.tool_calls[: 1 if self.one_call else None]


async def begin(server: Server, request: Request, chat: Chat) -> Job:
    """Raises ApiProblem."""
    return await server.begin(
        request, chat.model, chat.make, n=chat.n, tells_progress=chat.tells_progress, called=chat.called, idle=chat.idle
    )


def prepared(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of OpenAI's interface as templates want them.

    Arguments of calls that stand as text become JSON; the result of a call gets the name of its tool; what developers
    say is what the system says.
    """
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for message in map(dict, messages):
        if message.get("role") == "developer":
            message["role"] = "system"
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_prepared_call(call, names) for call in _listed(calls)]
        if message.get("role") == "tool" and "name" not in message and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]
        if isinstance(message.get("content"), list):
            message["content"] = [_prepared_part(part) for part in message["content"]]
        found.append(message)
    return found


def _listed(calls: Any) -> list[Any]:
    if not isinstance(calls, list):
        raise ApiProblem(400, "tool_calls of a message is no list", "messages")
    return calls


def _prepared_call(call: Any, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiProblem(400, "tool_calls of a message holds a call without a function and its name", "messages")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = strict_json.parse(arguments.encode()) if arguments.strip() else {}
        except FormatError:
            arguments = function["arguments"]  # a model may have written what is no JSON; it is told back as it was
    if isinstance(call.get("id"), str):
        names[call["id"]] = function["name"]
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _prepared_part(part: Any) -> Any:
    """The parts of texts under the names of other interfaces, as what they are."""
    if isinstance(part, dict) and part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if isinstance(part, dict) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def think_of(effort: str | None, param: str) -> bool | None:
    """What an effort of reasoning means: none of it, or some. Raises ApiProblem for a word that is none."""
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise ApiProblem(400, f"{param} is {effort[:40]!r}; expected one of {', '.join(EFFORTS)}", param)
    return effort != "none"


def arguments_of(call: Call) -> str:
    """Arguments as a text, as OpenAI has them."""
    return as_json(call.arguments)


def joined(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    """Neighbouring pieces of one kind in one: kind and text."""
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if found and found[-1][0] == piece.kind:
            found[-1] = (piece.kind, found[-1][1] + piece.text)
        else:
            found.append((piece.kind, piece.text))
    return found
