"""/v1/responses: conversations that the server remembers, if they are to be stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import begin
from edgellm.server.kept import Kept
from edgellm.server.openai.chat import wrong
from edgellm.server.openai.response_reading import chat_of
from edgellm.server.openai.response_types import InputTokensRequest, ResponsesRequest
from edgellm.server.openai.response_writing import Writing, is_half_a_call
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server
from edgellm.server.streams import JsonAnswer, as_json, unless_gone

MOST_KEPT = 1000
MOST_BYTES = 64 << 20  # of JSON, for all that are stored; it takes some times as much as objects
MOST_ITEMS = 10_000  # of a conversation


@dataclass
class Stored:
    """An answer that a client may come back to, and the conversation before it."""

    response: dict[str, Any]
    before: list[dict[str, Any]]

    @property
    def items(self) -> list[dict[str, Any]]:
        """The conversation with the answer, but for a call that was cut off, to which nobody can have a result."""
        return [*self.before, *(item for item in self.response["output"] if not is_half_a_call(item))]


class Responses:
    """All that are stored."""

    def __init__(self) -> None:
        self.kept: Kept[Stored] = Kept("response", "resp_", MOST_KEPT, MOST_BYTES)

    async def create(self, server: Server, request: Request) -> Response:
        asked = await server.body(request, ResponsesRequest)
        return await unless_gone(request, self._answered(server, request, asked))

    async def input_tokens(self, server: Server, request: Request) -> Response:
        """How many tokens are read for an answer, which is not written."""
        asked = await server.body(request, InputTokensRequest)
        wanted = chat_of(asked, self._before(asked, _owner(request)))
        generations = await unless_gone(request, server.ask(request, wanted.model, wanted.make, wanted.called))
        return JsonAnswer({"object": "response.input_tokens", "input_tokens": generations[0].stats.n_prompt_tokens})

    async def show(self, server: Server, request: Request) -> Response:
        return JsonAnswer(self.kept.get(request.path_params["id"], _owner(request)).response)

    async def delete(self, server: Server, request: Request) -> Response:
        name = request.path_params["id"]
        self.kept.drop(name, _owner(request))
        return JsonAnswer({"id": name, "object": "response", "deleted": True})

    async def items(self, server: Server, request: Request) -> Response:
        """What was asked, the newest first."""
        asked = self.kept.get(request.path_params["id"], _owner(request)).before[::-1]
        data = [{"id": f"item_{len(asked) - number}", **item} for number, item in enumerate(asked)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JsonAnswer({"object": "list", "data": data, "has_more": False, **ends})

    async def _answered(self, server: Server, request: Request, asked: ResponsesRequest) -> Response:
        owner = _owner(request)
        before = self._before(asked, owner)
        wanted = chat_of(asked, before)

        def writing_of(job: Job) -> Writing:
            def store(writing: Writing) -> None:
                if asked.store is not False:
                    stored = Stored(writing.response(), [*before, *asked.items])
                    # Earlier items are those of earlier answers, and take no more room.
                    size = len(as_json(stored.response)) + len(as_json(asked.items))
                    self.kept.put(writing.id, owner, stored, size)

            return Writing(job, asked, wanted, self.kept.new_name(), store)

        beginning = begin(server, request, wanted)
        if asked.stream:
            return await streamed(beginning, lambda job: writing_of(job).stream(), wrong, server.config)
        return await in_one_piece(beginning, lambda job: writing_of(job).whole())

    def _before(self, asked: InputTokensRequest, owner: str) -> list[dict[str, Any]]:
        """The items of the conversation that a request goes on with. Raises ApiProblem."""
        before: list[dict[str, Any]] = []
        if asked.previous_response_id is not None:
            before = self.kept.get(asked.previous_response_id, owner).items
        if len(before) + len(asked.items) > MOST_ITEMS:
            raise ApiProblem(400, f"the conversation has more than {MOST_ITEMS} items", "input")
        return before


def _owner(request: Request) -> str:
    return str(request.scope["state"]["client"])
