"""A chat as the engine takes it, whichever interface it came by, and what there is to tell of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from edgellm.engine import Generation, Model
from edgellm.engine.openai.asking import EFFORTS
from edgellm.engine.openai.asking import prepared as prepared_calls
from edgellm.server.fields import check_messages, check_variables, text_parts
from edgellm.server.length import check_chat_length
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server


@dataclass
class Chat:
    """What is asked.

    messages:  as OpenAI has them, but with the arguments of calls as JSON has them. keywords: those of `Model.chat`.
    called:    what the interface calls keywords of ours.
    """

    model: str | None
    messages: list[dict[str, Any]]
    keywords: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    called: Mapping[str, str] = field(default_factory=dict)
    tells_progress: bool = False
    idle: float | None = None

    def make(self, model: Model) -> list[Generation]:
        if model.chat_template is None:
            raise ApiProblem(
                400, f"{self.model or model.path.stem} is a base model without a chat template; give it a plain text, "
                "by /v1/completions or /api/generate", "model",
            )  # fmt: skip
        check_chat_length(model, self.messages)
        check_messages(self.messages, model.chat_template)
        check_variables(self.keywords.get("template_variables", {}), model.chat_template, "chat_template_kwargs")
        return model.chat(self.messages, n=self.n, **self.keywords)


async def begin(server: Server, request: Request, chat: Chat) -> Job:
    """Raises ApiProblem."""
    return await server.begin(
        request, chat.model, chat.make, n=chat.n, tells_progress=chat.tells_progress, called=chat.called, idle=chat.idle
    )


def prepared(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of OpenAI's interfaces as templates want them. Raises UsageError, ApiProblem."""
    return [_with_texts(number, message) for number, message in enumerate(prepared_calls(messages))]


def _with_texts(number: int, message: dict[str, Any]) -> dict[str, Any]:
    """The parts of texts under the names of other interfaces, as what they are."""
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": text_parts(message["content"], f"messages.{number}.content")}


def form_of(form: dict[str, Any] | None, param: str) -> dict[str, Any] | None:
    """The form that an answer is to have; {"type": "text"} asks for none. Raises ApiProblem for an empty one."""
    if form == {}:
        raise ApiProblem(400, f"{param} has no type; expected text, json_object or json_schema", param)
    return None if form == {"type": "text"} else form


def think_of(effort: str | None, param: str) -> bool | None:
    """What an effort of reasoning means: none of it, or some. Raises ApiProblem for a word that is none."""
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise ApiProblem(400, f"{param} is {effort[:40]!r}; expected one of {', '.join(EFFORTS)}", param)
    return effort != "none"
