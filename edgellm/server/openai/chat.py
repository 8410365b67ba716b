"""/v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation
from edgellm.engine.openai.shapes import FINISH, ChatShape
from edgellm.engine.piece import Kind, Piece, joined
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import Chat, begin, form_of, prepared, think_of
from edgellm.server.driver import Part
from edgellm.server.openai.shapes import prompt_progress, timings
from edgellm.server.openai.types import ChatRequest, Completing
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.server import Job, Server
from edgellm.server.streams import Form, event, unless_gone
from edgellm.text.calls.telling import ToldCalls

CALLED = {"template_variables": "chat_template_kwargs"}
DONE = b"data: [DONE]\n\n"


async def chat(server: Server, request: Request) -> Response:
    asked = await server.body(request, ChatRequest)
    return await unless_gone(request, _answered(server, request, asked))


async def _answered(server: Server, request: Request, asked: ChatRequest) -> Response:
    wanted = chat_of(asked)
    beginning = begin(server, request, wanted)
    if asked.stream:
        return await streamed(beginning, lambda job: _stream(job, asked), wrong, server.config)
    return await in_one_piece(beginning, lambda job: _whole(job, asked))


def wrong(error: Exception) -> bytes:
    """An error in a stream."""
    return event(problem_of(error, CALLED).as_openai())


def check_streaming(asked: Completing) -> None:
    """Raises ApiProblem for wishes about a stream where none is asked for."""
    for name in ("stream_options", "return_progress"):
        if getattr(asked, name) and not asked.stream:
            raise ApiProblem(400, f"{name} is given, but stream is not true; set it, or leave {name} out", name)


def chat_of(asked: ChatRequest) -> Chat:
    """What the engine is asked for. Raises ApiProblem for fields that do not go together."""
    keywords = asked.keywords()
    messages = [message.plain() for message in asked.messages]
    limits = [limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None]
    if limits:
        keywords["max_tokens"] = min(limits)
    check_streaming(asked)
    if asked.top_logprobs and not asked.logprobs:
        raise ApiProblem(400, "top_logprobs is given, but logprobs is not true; set it", "top_logprobs")
    if asked.logprobs:
        keywords["logprobs"] = asked.top_logprobs or 0
    variables = asked.chat_template_kwargs or {}
    if asked.documents is not None:
        if "documents" in variables:
            raise ApiProblem(400, "documents are given twice, in chat_template_kwargs too; leave one out", "documents")
        variables = {**variables, "documents": asked.documents}
    if variables:
        keywords["template_variables"] = variables
    if asked.think is not None and asked.reasoning_effort is not None:
        raise ApiProblem(400, "think and reasoning_effort are both given; leave one out", "think")
    think = asked.think if asked.think is not None else think_of(asked.reasoning_effort, "reasoning_effort")
    wishes = {
        "think": think,
        "think_budget": asked.think_budget,
        "response_format": form_of(asked.response_format, "response_format"),
        "tools": asked.tools or None,
        "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "continue_final_message": asked.continues(messages),
    }
    keywords |= {name: wish for name, wish in wishes.items() if wish is not None}
    return Chat(
        asked.model,
        prepared(messages),
        keywords,
        n=asked.n or 1,
        called=CALLED if asked.reasoning_effort is None else {**CALLED, "think": "reasoning_effort"},
        tells_progress=bool(asked.stream and asked.return_progress),
    )


def _shape(job: Job, asked: ChatRequest) -> ChatShape:
    return ChatShape(
        job.model.tokenizer, job.loaded.name, bool(asked.logprobs), bool(asked.includes_usage), job.created
    )


def _whole(job: Job, asked: ChatRequest) -> dict[str, Any]:
    """The answer in one piece."""
    for generation in job.generations:
        finish_of(generation)
    return {**_shape(job, asked).completion(job.generations), "timings": timings(job.generations[0])}


def finish_of(generation: Generation) -> str:
    """Why an answer ended. Raises ApiProblem for one that was cut off."""
    reason = FINISH.get(generation.finish_reason or "")
    if reason is None:
        raise ApiProblem(503, "the answer was cut off", headers={"Retry-After": "5"})
    return reason


class _Said:
    """The events of what comes of answers; for a text without more, they are made ready once."""

    def __init__(self, shape: ChatShape) -> None:
        self._shape = shape
        self._forms: dict[tuple[int, str], Form] = {}  # by answer and kind of text

    def __call__(self, part: Part) -> bytes:
        if part.logprobs:
            return b"".join(map(event, self._shape.part(part.index, part.pieces, part.logprobs)))
        found = b""
        for kind, text in joined(part.pieces):
            form = self._forms.get((part.index, kind)) or self._new_form(part.index, kind)
            found += form(text)
        return found

    def _new_form(self, index: int, kind: Kind) -> Form:
        form = Form(lambda text: event(next(self._shape.part(index, [Piece(kind, text)]))))
        self._forms[index, kind] = form
        return form


async def _stream(job: Job, asked: ChatRequest) -> AsyncIterator[bytes]:
    shape = _shape(job, asked)
    said = _Said(shape)
    calls = [ToldCalls() for _ in job.generations]
    try:
        for chunk in shape.beginning(len(job.generations)):
            yield event(chunk)
        async for part in job.answers.said_as(said):
            generation = job.generations[part.index]
            if part.progress is not None:
                yield event({**shape.aside(), "prompt_progress": prompt_progress(generation, part.progress)})
                continue
            if told := said(part):
                yield told
            called = calls[part.index]
            for chunk in shape.calls(part.index, generation, called):
                yield event(chunk)
            if part.is_last:
                finish_of(generation)
                *others, last = shape.end(part.index, generation, called.n_calls)
                for chunk in (*others, {**last, "timings": timings(generation)}):
                    yield event(chunk)
        for chunk in shape.ending(job.generations):
            yield event(chunk)
        yield DONE
    except Exception as error:
        yield event(job.problem(error).as_openai())
    finally:
        await job.close()
