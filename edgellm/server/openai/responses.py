"""/v1/responses: conversations that the server remembers, if they are to be stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation
from edgellm.engine.openai.shapes import logprobs_shape, shifts_of
from edgellm.engine.piece import joined
from edgellm.engine.sampling import TokenLogprobs
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import Chat, begin
from edgellm.server.driver import Part
from edgellm.server.kept import Kept
from edgellm.server.openai.chat import finish_of, wrong
from edgellm.server.openai.response_reading import chat_of, items_of
from edgellm.server.openai.response_types import ResponsesRequest
from edgellm.server.openai.shapes import new_id
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server
from edgellm.server.streams import Form, JsonAnswer, as_json, event, unless_gone
from edgellm.text.calls import Call

MOST_KEPT = 1000
MOST_BYTES = 64 << 20  # of JSON, for all that are stored; it takes some times as much as objects
MOST_ITEMS = 10_000  # of a conversation


@dataclass
class Stored:
    """An answer that a client may come back to, and the conversation up to it."""

    response: dict[str, Any]
    items: list[dict[str, Any]]


class Responses:
    """All that are stored."""

    def __init__(self) -> None:
        self.kept: Kept[Stored] = Kept("response", "resp_", MOST_KEPT, MOST_BYTES)

    async def create(self, server: Server, request: Request) -> Response:
        asked = await server.body(request, ResponsesRequest)
        return await unless_gone(request, self._answered(server, request, asked))

    async def show(self, server: Server, request: Request) -> Response:
        return JsonAnswer(self.kept.get(request.path_params["id"], _owner(request)).response)

    async def delete(self, server: Server, request: Request) -> Response:
        name = request.path_params["id"]
        self.kept.drop(name, _owner(request))
        return JsonAnswer({"id": name, "object": "response", "deleted": True})

    async def items(self, server: Server, request: Request) -> Response:
        """What was asked, the newest first."""
        stored = self.kept.get(request.path_params["id"], _owner(request))
        n_answer = len(stored.response["output"])
        asked = stored.items[: len(stored.items) - n_answer][::-1]
        data = [{"id": f"item_{len(asked) - number}", **item} for number, item in enumerate(asked)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JsonAnswer({"object": "list", "data": data, "has_more": False, **ends})

    async def _answered(self, server: Server, request: Request, asked: ResponsesRequest) -> Response:
        owner = _owner(request)
        before: list[dict[str, Any]] = []
        if asked.previous_response_id is not None:
            before = self.kept.get(asked.previous_response_id, owner).items
        if len(before) + len(asked.input) > MOST_ITEMS and not isinstance(asked.input, str):
            raise ApiProblem(400, f"the conversation has more than {MOST_ITEMS} items", "input")
        wanted = chat_of(asked, before)

        def writing_of(job: Job) -> _Writing:
            def store(writing: _Writing) -> None:
                if asked.store is not False:
                    items = [*before, *items_of(asked), *writing.output]
                    stored = Stored(writing.response(), items)
                    # Earlier items are those of earlier answers, and take no more room.
                    size = len(as_json(stored.response)) + len(as_json(items_of(asked)))
                    self.kept.put(writing.id, owner, stored, size)

            return _Writing(job, asked, wanted, self.kept.new_name(), store)

        beginning = begin(server, request, wanted)
        if asked.stream:
            return await streamed(beginning, lambda job: writing_of(job).stream(), wrong, server.config)
        return await in_one_piece(beginning, lambda job: writing_of(job).whole())


def _owner(request: Request) -> str:
    return str(request.scope["state"]["client"])


class _Writing:
    """One answer, and the events that tell of it."""

    def __init__(
        self, job: Job, asked: ResponsesRequest, wanted: Chat, name: str, store: Callable[[_Writing], None]
    ) -> None:
        self.id = name
        self.output: list[dict[str, Any]] = []
        self._job, self._asked, self._wanted, self._store = job, asked, wanted, store
        self._status = "in_progress"
        self._reason: str | None = None
        self._number = -1  # of the last event
        self._kind = ""  # of the item that is open
        self._form: Form | None = None  # of text in it

    @property
    def _generation(self) -> Generation:
        return self._job.generations[0]

    def response(self) -> dict[str, Any]:
        """As it is now."""
        asked = self._asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._job.created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": self._reason} if self._reason else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._job.loaded.name,
            "output": self.output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": asked.reasoning.model_dump() if asked.reasoning else {"effort": None, "summary": None},
            "store": asked.store is not False,
            "temperature": asked.temperature,
            "text": asked.text.model_dump(exclude_none=True) if asked.text else {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": self._usage() if self._status != "in_progress" else None,
            "user": asked.user,
            "metadata": asked.metadata or {},
        }

    def _usage(self) -> dict[str, Any]:
        stats = self._generation.stats
        return {
            "input_tokens": stats.n_prompt_tokens,
            "input_tokens_details": {"cached_tokens": stats.n_reused_tokens, "cache_write_tokens": 0},
            "output_tokens": stats.n_generated_tokens,
            "output_tokens_details": {"reasoning_tokens": len(self._job.model.tokenize(self._generation.reasoning))},
            "total_tokens": stats.n_prompt_tokens + stats.n_generated_tokens,
            **shifts_of([self._generation]),
        }

    def _conclude(self) -> None:
        is_whole = finish_of(self._generation) == "stop"
        self._status = "completed" if is_whole else "incomplete"
        self._reason = None if is_whole else "max_output_tokens"

    def whole(self) -> dict[str, Any]:
        """All of it, when the generation has ended. Raises ApiProblem for one that was cut off."""
        self._conclude()
        generation = self._generation
        if thought := generation.reasoning.strip():
            self.output.append(_reasoning(thought))
        if generation.content or not generation.tool_calls:
            self.output.append(self._message(generation.content))
        if self.output and not generation.tool_calls:
            self.output[-1]["status"] = self._status
        self.output += [_call(call) for call in generation.tool_calls]
        self._store(self)
        return self.response()

    def _message(self, text: str) -> dict[str, Any]:
        logprobs: list[Any] = []
        if "logprobs" in self._wanted.keywords:
            logprobs = logprobs_shape(self._job.model.tokenizer, self._generation.logprobs)["content"]
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        return {"type": "message", "id": new_id("msg"), "role": "assistant", "status": "completed", "content": [part]}

    # --- events -------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        return _numbered(self._next_number(), kind, fields)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    async def stream(self) -> AsyncIterator[bytes]:
        job = self._job
        try:
            yield self._event("response.created", response=self.response())
            yield self._event("response.in_progress", response=self.response())
            async for part in job.answers.said_as(self._said):
                if told := self._said(part):
                    yield told
            self._conclude()
            for told in self._closing(self._kind):
                yield told
            for call in self._generation.tool_calls:
                for told in self._call_events(call):
                    yield told
            self._store(self)
            yield self._event(f"response.{self._status}", response=self.response())
        except Exception as error:
            problem = job.problem(error)
            self._status = "failed"
            failed = {"code": "server_error", "message": problem.message}
            yield self._event("response.failed", response={**self.response(), "error": failed})
        finally:
            await job.close()

    def _said(self, part: Part) -> bytes:
        """The events of new text."""
        found = []
        logprobs = part.logprobs
        for kind, text in joined(part.pieces):
            if kind != self._kind:
                found += [*self._closing(self._kind), *self._opening(kind)]
                self._kind, self._form = kind, None
            self.output[-1]["content"][0]["text"] += text
            found.append(self._delta(text, logprobs))
            logprobs = []
        return b"".join(found)

    def _opening(self, kind: str) -> list[bytes]:
        item = self._message("") if kind == "content" else _reasoning("")
        part = item["content"][0]
        item = {**item, "status": "in_progress", "content": []}
        self.output.append({**item, "content": [part]})
        index = len(self.output) - 1
        return [
            self._event("response.output_item.added", output_index=index, item=item),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _delta(self, text: str, logprobs: list[TokenLogprobs]) -> bytes:
        if logprobs or self._form is None:
            place, is_said = self._place(), self._kind == "content"
            name = "response.output_text.delta" if is_said else "response.reasoning_text.delta"
            told = {"logprobs": logprobs_shape(self._job.model.tokenizer, logprobs)["content"]} if is_said else {}
            form = Form(lambda number, text: _numbered(number, name, {**place, "delta": text, **told}), 2)
            if logprobs:
                return form(self._next_number(), text)
            self._form = form
        return self._form(self._next_number(), text)

    def _closing(self, kind: str) -> list[bytes]:
        if not kind:
            return []
        item = self.output[-1]
        # What comes before a call, or before another part, is whole.
        item["status"] = (
            "incomplete" if self._status == "incomplete" and not self._generation.tool_calls else "completed"
        )
        part, place = item["content"][0], self._place()
        if kind == "content":
            if "logprobs" in self._wanted.keywords:
                found = self._generation.logprobs
                part["logprobs"] = logprobs_shape(self._job.model.tokenizer, found)["content"]
            done = self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        else:
            done = self._event("response.reasoning_text.done", **place, text=part["text"])
        return [
            done,
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]

    def _call_events(self, call: Call) -> list[bytes]:
        item = _call(call)
        self.output.append(item)
        place = {"item_id": item["id"], "output_index": len(self.output) - 1}
        waiting = {**item, "arguments": "", "status": "in_progress"}
        arguments = item["arguments"]
        return [
            self._event("response.output_item.added", output_index=place["output_index"], item=waiting),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]


def _numbered(number: int, kind: str, fields: dict[str, Any]) -> bytes:
    return event({"type": kind, "sequence_number": number, **fields}, kind)


def _reasoning(thought: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": thought}]
    return {"type": "reasoning", "id": new_id("rs"), "summary": [], "content": content, "status": "completed"}


def _call(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": new_id("fc"),
        "call_id": call.id,
        "name": call.name,
        "arguments": as_json(call.arguments),
        "status": "completed",
    }
