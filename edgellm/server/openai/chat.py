"""/v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation, Model
from edgellm.server.openai.shapes import FINISH, head, prompt_progress, timings, usage
from edgellm.server.openai.tokens import chat_logprobs
from edgellm.server.openai.types import ChatRequest
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server
from edgellm.server.streams import EventStream, JsonAnswer, event, unless_gone

CALLED = {"template_variables": "chat_template_kwargs"}
DONE = b"data: [DONE]\n\n"


async def chat(server: Server, request: Request) -> Response:
    asked = await server.body(request, ChatRequest)
    return await unless_gone(request, _answered(server, request, asked))


async def _answered(server: Server, request: Request, asked: ChatRequest) -> Response:
    keywords = chat_keywords(asked)
    job = await begin_chat(server, request, asked, keywords)
    if asked.stream:
        return EventStream(_stream(job, asked), every=server.config.ping)
    try:
        await job.finish()
        return JsonAnswer(whole_chat(job, asked))
    finally:
        await job.close()


def chat_keywords(asked: ChatRequest) -> dict[str, Any]:
    """The engine's keywords for a chat. Raises ApiProblem for fields that do not go together."""
    keywords = asked.keywords()
    limits = [limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None]
    if limits:
        keywords["max_tokens"] = min(limits)
    if asked.top_logprobs and not asked.logprobs:
        raise ApiProblem(400, "top_logprobs is given, but logprobs is not true; set it", "top_logprobs")
    if asked.logprobs:
        keywords["logprobs"] = asked.top_logprobs or 0
    if asked.chat_template_kwargs:
        keywords["template_variables"] = asked.chat_template_kwargs
    return keywords


async def begin_chat(server: Server, request: Request, asked: ChatRequest, keywords: dict[str, Any]) -> Job:
    n = asked.n or 1
    messages = [message.plain() for message in asked.messages]

    def make(model: Model) -> list[Generation]:
        return model.chat(messages, n=n, **keywords)

    progress = bool(asked.stream and asked.return_progress)
    return await server.begin(request, asked.model, make, n=n, tells_progress=progress, called=CALLED)


def whole_chat(job: Job, asked: ChatRequest) -> dict[str, Any]:
    """The answer in one piece."""
    choices = []
    for index, (generation, pieces) in enumerate(zip(job.generations, job.answers.texts, strict=True)):
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": "".join(pieces), "refusal": None},
            "logprobs": None,
            "finish_reason": finish_of(generation),
        }
        if asked.logprobs:
            choice["logprobs"] = chat_logprobs(job.model.tokenizer, generation.logprobs)
        choices.append(choice)
    return {
        **head(job, "chatcmpl", "chat.completion"),
        "choices": choices,
        "usage": usage(job.generations),
        "timings": timings(job.generations[0]),
    }


def finish_of(generation: Generation) -> str:
    """Why an answer ended. Raises ApiProblem for one that was cut off."""
    reason = FINISH.get(generation.finish_reason or "")
    if reason is None:
        raise ApiProblem(503, "the answer was cut off", headers={"Retry-After": "5"})
    return reason


async def _stream(job: Job, asked: ChatRequest) -> AsyncIterator[bytes]:
    first = head(job, "chatcmpl", "chat.completion.chunk")
    tokenizer = job.model.tokenizer
    with_usage = {"usage": None} if asked.includes_usage else {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**first, "choices": [choice], **with_usage})

    try:
        for index in range(len(job.generations)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for part in job.answers:
            generation = job.generations[part.index]
            if part.progress is not None:
                told = {"prompt_progress": prompt_progress(generation, part.progress)}
                yield event({**first, "choices": [], **told, **with_usage})
                continue
            if part.pieces or part.logprobs:
                logprobs = chat_logprobs(tokenizer, part.logprobs) if asked.logprobs else None
                yield chunk(part.index, {"content": "".join(part.pieces)}, logprobs)
            if part.is_last:
                choice = {"index": part.index, "delta": {}, "logprobs": None, "finish_reason": finish_of(generation)}
                yield event({**first, "choices": [choice], "timings": timings(generation), **with_usage})
        if asked.includes_usage:
            yield event({**first, "choices": [], "usage": usage(job.generations)})
        yield DONE
    except Exception as error:
        yield event(job.problem(error).as_openai())
    finally:
        await job.close()
