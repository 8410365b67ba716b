"""/v1/completions: texts that are continued, and what a model thinks of a given text (`echo`, `logprobs`)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation, Model
from edgellm.engine.sampling import TokenLogprobs
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.driver import Part
from edgellm.server.length import check_length
from edgellm.server.openai.chat import DONE, check_streaming, finish_of, wrong
from edgellm.server.openai.shapes import head, prompt_progress, timings, usage
from edgellm.server.openai.tokens import TextLogprobs
from edgellm.server.openai.types import CompletionRequest
from edgellm.server.problems import ApiProblem
from edgellm.server.server import Job, Server
from edgellm.server.streams import Form, event, unless_gone


@dataclass(frozen=True)
class Echo:
    """A prompt, as it is told back.

    told:  its tokens with their log-probabilities, the first as its id alone; None where nobody asked.
    """

    text: str
    token_ids: list[int]
    told: list[TokenLogprobs | int] | None = None


async def complete(server: Server, request: Request) -> Response:
    asked = await server.body(request, CompletionRequest)
    return await unless_gone(request, _answered(server, request, asked))


async def _answered(server: Server, request: Request, asked: CompletionRequest) -> Response:
    _check(asked)
    echoes: list[Echo] = []
    if asked.echo:
        gone = threading.Event()
        try:
            echoes = await server.ask(request, asked.model, lambda model: _echoes(model, asked, gone))
        finally:
            gone.set()
    beginning = _begin(server, request, asked)
    if asked.stream:
        return await streamed(beginning, lambda job: _stream(job, asked, echoes), wrong, server.config)
    return await in_one_piece(beginning, lambda job: _whole(job, asked, echoes))


def _check(asked: CompletionRequest) -> None:
    check_streaming(asked)
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise ApiProblem(400, f"best_of is {asked.best_of}; this server gives every answer that it writes: use n alone",
                         "best_of")  # fmt: skip
    if not asked.prompts:
        raise ApiProblem(400, "prompt is empty; expected a text, token ids, or a list of either", "prompt")


async def _begin(server: Server, request: Request, asked: CompletionRequest) -> Job:
    keywords = asked.keywords()
    if asked.max_tokens is not None:
        keywords["max_tokens"] = asked.max_tokens
    if asked.logprobs is not None:
        keywords["logprobs"] = asked.logprobs
    n = asked.n or 1

    def make(model: Model) -> list[Generation]:
        made: list[Generation] = []
        for prompt in asked.prompts:
            check_length(model, len(prompt))
            made += model.generate(prompt, n=n, **keywords)
        return made

    progress = bool(asked.stream and asked.return_progress)
    return await server.begin(
        request, asked.model, make, n=min(n * len(asked.prompts), server.config.parallel), tells_progress=progress
    )


def _echoes(model: Model, asked: CompletionRequest, gone: threading.Event) -> list[Echo]:
    found = []
    for prompt in asked.prompts:
        check_length(model, len(prompt))
        ids = prompt if isinstance(prompt, list) else model.tokenize(prompt, add_special=True, parse_special=True)
        text = prompt if isinstance(prompt, str) else model.detokenize(prompt)
        told = None if asked.logprobs is None else _told(model, ids, asked.logprobs, gone)
        found.append(Echo(text, ids, told))
    return found


def _told(model: Model, ids: list[int], n_top: int, gone: threading.Event) -> list[TokenLogprobs | int]:
    """Every token of a text, by what the model thought of it beforehand; fewer when the client has gone."""
    told: list[TokenLogprobs | int] = [ids[0]] if ids else []
    if len(ids) > 1:
        for rows in model.logits_in_pieces(ids[:-1]):
            if gone.is_set():
                break
            told += [logprobs_of(ids[len(told) + i], row, None, n_top) for i, row in enumerate(rows)]
    return told


def _whole(job: Job, asked: CompletionRequest, echoes: Sequence[Echo]) -> dict[str, Any]:
    choices = []
    n = asked.n or 1
    for index, generation in enumerate(job.generations):
        echo = echoes[index // n] if echoes else None
        choice: dict[str, Any] = {
            "index": index,
            "text": (echo.text if echo else "") + generation.content,
            "logprobs": None,
            "finish_reason": finish_of(generation),
        }
        if asked.logprobs is not None:
            found = [*(echo.told or () if echo else ()), *generation.logprobs]
            choice["logprobs"] = TextLogprobs(job.model.tokenizer, asked.logprobs).shaped(found)
        choices.append(choice)
    return {
        **head(job, "cmpl", "text_completion"),
        "choices": choices,
        "usage": usage(job.generations, len(asked.prompts)),
        "timings": timings(job.generations[0]),
    }


async def _stream(job: Job, asked: CompletionRequest, echoes: Sequence[Echo]) -> AsyncIterator[bytes]:
    first = head(job, "cmpl", "text_completion")
    with_usage = {"usage": None} if asked.includes_usage else {}
    n = asked.n or 1
    n_top = asked.logprobs
    shapers = [TextLogprobs(job.model.tokenizer, n_top or 0) for _ in job.generations]

    def chunk(index: int, text: str, told: Sequence[TokenLogprobs | int] = (), finish: str | None = None) -> bytes:
        logprobs = None if n_top is None or not told else shapers[index].shaped(told)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event({**first, "choices": [choice], **with_usage})

    forms = [Form(lambda text, index=index: chunk(index, text)) for index in range(len(job.generations))]

    def said(part: Part) -> bytes:
        text = "".join(piece.text for piece in part.pieces)
        return chunk(part.index, text, part.logprobs) if part.logprobs else forms[part.index](text)

    try:
        for index in range(len(job.generations) if echoes else 0):
            echo = echoes[index // n]
            yield chunk(index, echo.text, echo.told or ())
        async for part in job.answers.said_as(said):
            generation = job.generations[part.index]
            if part.progress is not None:
                told = {"prompt_progress": prompt_progress(generation, part.progress)}
                yield event({**first, "choices": [], **told, **with_usage})
                continue
            if part.pieces or part.logprobs:
                yield said(part)
            if part.is_last:
                yield chunk(part.index, "", finish=finish_of(generation))
        if asked.includes_usage:
            yield event({**first, "choices": [], "usage": usage(job.generations, len(asked.prompts))})
        yield DONE
    except Exception as error:
        yield event(job.problem(error).as_openai())
    finally:
        await job.close()
