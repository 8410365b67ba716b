"""/v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation
from edgellm.engine.openai.shapes import FINISH, call_shape, logprobs_shape, message_shape
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import Chat, begin, form_of, joined, prepared, think_of
from edgellm.server.openai.shapes import head, prompt_progress, timings, usage
from edgellm.server.openai.types import ChatRequest
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.server import Job, Server
from edgellm.server.streams import event, unless_gone

CALLED = {"template_variables": "chat_template_kwargs"}
DONE = b"data: [DONE]\n\n"


async def chat(server: Server, request: Request) -> Response:
    asked = await server.body(request, ChatRequest)
    return await unless_gone(request, _answered(server, request, asked))


async def _answered(server: Server, request: Request, asked: ChatRequest) -> Response:
    wanted = chat_of(asked)
    beginning = begin(server, request, wanted)
    if asked.stream:
        return await streamed(beginning, lambda job: _stream(job, asked, wanted), wrong, server.config)
    return await in_one_piece(beginning, lambda job: _whole(job, asked, wanted))


def wrong(error: Exception) -> bytes:
    """An error in a stream."""
    return event(problem_of(error, CALLED).as_openai())


def chat_of(asked: ChatRequest) -> Chat:
    """What the engine is asked for. Raises ApiProblem for fields that do not go together."""
    keywords = asked.keywords()
    limits = [limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None]
    if limits:
        keywords["max_tokens"] = min(limits)
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
        "response_format": form_of(asked.response_format),
        "tools": asked.tools or None,
        "tool_choice": asked.tool_choice,
    }
    keywords |= {name: wish for name, wish in wishes.items() if wish is not None}
    return Chat(
        asked.model,
        prepared(message.plain() for message in asked.messages),
        keywords,
        n=asked.n or 1,
        called=CALLED,
        tells_progress=bool(asked.stream and asked.return_progress),
        one_call=asked.parallel_tool_calls is False,
    )


def _whole(job: Job, asked: ChatRequest, wanted: Chat) -> dict[str, Any]:
    """The answer in one piece."""
    choices = []
    for index, generation in enumerate(job.generations):
        calls = wanted.calls_of(generation)
        choice: dict[str, Any] = {
            "index": index,
            "message": message_shape(generation.content, generation.reasoning.strip(), calls),
            "logprobs": None,
            "finish_reason": "tool_calls" if calls else finish_of(generation),
        }
        if asked.logprobs:
            choice["logprobs"] = logprobs_shape(job.model.tokenizer, generation.logprobs)
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


async def _stream(job: Job, asked: ChatRequest, wanted: Chat) -> AsyncIterator[bytes]:
    first = head(job, "chatcmpl", "chat.completion.chunk")
    tokenizer = job.model.tokenizer
    with_usage = {"usage": None} if asked.includes_usage else {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
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
            logprobs = logprobs_shape(tokenizer, part.logprobs) if asked.logprobs and part.logprobs else None
            for kind, text in joined(part.pieces):
                yield chunk(part.index, {"content" if kind == "content" else "reasoning_content": text}, logprobs)
                logprobs = None
            if logprobs is not None:  # of tokens whose text comes later, or never
                yield chunk(part.index, {"content": ""}, logprobs)
            if part.is_last:
                calls = wanted.calls_of(generation)
                for number, call in enumerate(calls):
                    yield chunk(part.index, {"tool_calls": [{"index": number, **call_shape(call)}]})
                finish = "tool_calls" if calls else finish_of(generation)
                choice = {"index": part.index, "delta": {}, "logprobs": None, "finish_reason": finish}
                yield event({**first, "choices": [choice], "timings": timings(generation), **with_usage})
        if asked.includes_usage:
            yield event({**first, "choices": [], "usage": usage(job.generations)})
        yield DONE
    except Exception as error:
        yield event(job.problem(error).as_openai())
    finally:
        await job.close()
