"""/v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation
from edgellm.engine.openai.shapes import shifts_of
from edgellm.engine.piece import joined
from edgellm.server.anthropic.reading import CALL_ID, CALLED, chat_of
from edgellm.server.anthropic.types import CountRequest, MessagesRequest
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import begin
from edgellm.server.driver import Part
from edgellm.server.openai.shapes import new_id
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.server import Job, Server
from edgellm.server.streams import Form, JsonAnswer, as_json, event, unless_gone
from edgellm.text.calls import Call
from edgellm.text.calls.following import OpenCall
from edgellm.text.calls.telling import ToldCalls

PING = event({"type": "ping"}, "ping")


async def messages(server: Server, request: Request) -> Response:
    asked = await server.body(request, MessagesRequest)
    return await unless_gone(request, _answered(server, request, asked))


async def count_tokens(server: Server, request: Request) -> Response:
    asked = await server.body(request, CountRequest)
    wanted = chat_of(asked)
    generations = await server.ask(request, wanted.model, wanted.make, wanted.called)
    return JsonAnswer({"input_tokens": generations[0].stats.n_prompt_tokens})


async def _answered(server: Server, request: Request, asked: MessagesRequest) -> Response:
    wanted = chat_of(asked)
    beginning = begin(server, request, wanted)
    if asked.stream:
        return await streamed(beginning, _stream, _wrong, server.config, PING)
    return await in_one_piece(beginning, _whole)


def _wrong(error: Exception) -> bytes:
    return event(problem_of(error, CALLED).as_anthropic(), "error")


def _whole(job: Job) -> dict[str, Any]:
    generation = job.generations[0]
    content: list[dict[str, Any]] = []
    if thought := generation.reasoning.strip():
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if generation.content:
        content.append({"type": "text", "text": generation.content})
    content += [{**_call(call), "input": call.arguments} for call in generation.tool_calls]
    return {**_message(job), "content": content, **_end(generation), "usage": _usage(generation)}


def _message(job: Job) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": job.loaded.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _call(call: Call | OpenCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"{CALL_ID}{call.id}", "name": call.name, "input": {}}


def _end(generation: Generation) -> dict[str, Any]:
    """Why it ended. Raises ApiProblem for an answer that was cut off."""
    reason, stop = generation.finish_reason, generation.stop_string
    if reason not in ("stop", "length", "context"):
        raise ApiProblem(503, "the answer was cut off", headers={"Retry-After": "5"})
    words = {"length": "max_tokens", "context": "model_context_window_exceeded"}
    word = words.get(reason) or ("tool_use" if generation.tool_calls else "stop_sequence" if stop else "end_turn")
    return {"stop_reason": word, "stop_sequence": stop}


def _usage(generation: Generation) -> dict[str, Any]:
    """Tokens of the prompt that came from the cache stand apart."""
    stats = generation.stats
    return {
        "input_tokens": stats.n_prompt_tokens - stats.n_reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.n_reused_tokens,
        "output_tokens": stats.n_generated_tokens,
        **shifts_of([generation]),
    }


class _Blocks:
    """The blocks of a streamed message: one is open at a time."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._calls = ToldCalls()
        self._index = -1
        self._kind: str | None = None
        self._form: Form | None = None  # of text in the open block

    def open(self, kind: str, block: dict[str, Any]) -> bytes:
        closing = self.close()
        self._index += 1
        self._kind = kind
        return closing + _event("content_block_start", index=self._index, content_block=block)

    def delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def text(self, kind: str, text: str) -> bytes:
        """Text of a kind, in the open block if it is of that kind."""
        opening = b""
        if kind != self._kind or self._form is None:
            name = "text" if kind == "content" else "thinking"
            signature = {} if kind == "content" else {"signature": ""}
            opening = self.open(kind, {"type": name, name: "", **signature})
            self._form = Form(lambda text: self.delta({"type": f"{name}_delta", name: text}))
        return opening + self._form(text)

    def said(self, part: Part) -> bytes:
        return b"".join([self.text(kind, text) for kind, text in joined(part.pieces)])

    @property
    def n_calls(self) -> int:
        """Calls that have blocks."""
        return self._calls.n_calls

    def called(self, part: Part) -> bytes:
        """What is new of calls."""
        found = b""
        for _, call, is_first, text, _ in self._calls.new(self._generation.open_calls):
            found += self.open("call", _call(call)) if is_first else b""
            found += self.delta({"type": "input_json_delta", "partial_json": text}) if text else b""
        return found

    def close(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


async def _stream(job: Job) -> AsyncIterator[bytes]:
    generation = job.generations[0]
    blocks = _Blocks(generation)
    try:
        yield _event("message_start", message={**_message(job), "usage": _usage(generation)})
        async for part in job.answers.said_as(blocks.said):
            # What is said comes before the calls; once there is one, behind them.
            parts = [blocks.called, blocks.said] if blocks.n_calls else [blocks.said, blocks.called]
            if told := b"".join([tell(part) for tell in parts]):
                yield told
        for call in generation.tool_calls[blocks.n_calls :]:
            delta = {"type": "input_json_delta", "partial_json": as_json(call.arguments)}
            yield blocks.open("call", _call(call)) + blocks.delta(delta)
        yield blocks.close()
        yield _event("message_delta", delta=_end(generation), usage=_usage(generation))
        yield _event("message_stop")
    except Exception as error:
        yield event(job.problem(error).as_anthropic(), "error")
    finally:
        await job.close()
