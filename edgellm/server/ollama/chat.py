"""/api/chat and /api/generate"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timezone
from time import monotonic
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Generation, Model
from edgellm.engine.openai.shapes import logprobs_shape, shifts_of
from edgellm.engine.piece import Kind, Piece, joined
from edgellm.engine.sampling import TokenLogprobs
from edgellm.server.beginning import in_one_piece, streamed
from edgellm.server.chatting import Chat, prepared
from edgellm.server.driver import Part
from edgellm.server.length import check_length
from edgellm.server.ollama.types import CALLED, Asking, ChatRequest, GenerateRequest
from edgellm.server.openai.chat import finish_of
from edgellm.server.problems import ApiProblem, problem_of
from edgellm.server.server import Job, Server
from edgellm.server.streams import Form, JsonAnswer, line, unless_gone
from edgellm.text.calls.telling import ToldCalls
from edgellm.text.calls.values import decoded

NDJSON = "application/x-ndjson"
# How a part of an answer is told: its pieces, and the calls that are whole now.
Teller = Callable[["list[Piece]", "Sequence[_Call]"], "dict[str, Any]"]


class _Call(NamedTuple):
    """A call of an answer. number: which one."""

    number: int
    id: str
    name: str
    arguments: dict[str, Any]


async def chat(server: Server, request: Request) -> Response:
    asked = await server.body(request, ChatRequest)
    if not asked.messages:
        return await _only_load(server, request, asked, {"message": {"role": "assistant", "content": ""}})
    wanted = Chat(asked.model, prepared(_messages(asked)), asked.keywords(), called=CALLED, idle=asked.idle)
    if asked.tools:
        wanted.keywords["tools"] = asked.tools
    return await unless_gone(request, _answered(server, request, asked, wanted.make, _told_in_chat))


async def generate(server: Server, request: Request) -> Response:
    asked = await server.body(request, GenerateRequest)
    for name in ("suffix", "template", "context", "images"):
        if getattr(asked, name):
            raise ApiProblem(400, f"{name} is given, which this server cannot follow; leave it out", name)
    if not asked.prompt and not asked.raw:
        return await _only_load(server, request, asked, {"response": ""})
    keywords = asked.keywords()

    def make(model: Model) -> list[Generation]:
        check_length(model, len(asked.prompt) + len(asked.system or ""))
        if asked.system and (asked.raw or model.chat_template is None):
            why = "raw is true" if asked.raw else f"{asked.model} has no chat template"
            raise ApiProblem(400, f"system is given, but {why}, so the prompt stands alone; leave system out", "system")
        if asked.raw or model.chat_template is None:
            return model.generate(asked.prompt, n=1, **keywords)
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        return model.chat([*system, {"role": "user", "content": asked.prompt}], n=1, **keywords)

    return await unless_gone(request, _answered(server, request, asked, make, _told_alone))


async def _only_load(server: Server, request: Request, asked: Asking, told: dict[str, Any]) -> Response:
    """A request without a question loads a model, or says how long it is kept."""
    started = monotonic()
    await server.ask(request, asked.model, asked.options.check, CALLED, asked.idle)
    reason = "unload" if asked.idle == 0 else "load"
    seconds = {"total_duration": _nanoseconds(monotonic() - started), "done": True, "done_reason": reason}
    return JsonAnswer({"model": asked.model, "created_at": _now(), **told, **seconds})


async def _answered(
    server: Server, request: Request, asked: Asking, make: Callable[[Model], list[Generation]], tell: Teller
) -> Response:
    def checked(model: Model) -> list[Generation]:
        asked.options.check(model)
        return make(model)

    beginning = server.begin(request, asked.model, checked, called=CALLED, idle=asked.idle)
    head = {"model": asked.model}
    if asked.stream is not False:
        return await streamed(
            beginning, lambda job: _stream(job, asked, head, tell), _wrong, server.config, b"", NDJSON
        )

    def whole(job: Job) -> dict[str, Any]:
        generation = job.generations[0]
        pieces = [Piece("reasoning", generation.reasoning.strip()), Piece("content", generation.content)]
        logprobs = _logprobs(job, generation.logprobs) if asked.logprobs else {}
        return {**head, "created_at": _now(), **tell(pieces, _calls(generation)), **logprobs, **_end(job)}

    return await in_one_piece(beginning, whole)


def _wrong(error: Exception) -> bytes:
    return line(problem_of(error, CALLED).as_ollama())


async def _stream(job: Job, asked: Asking, head: dict[str, Any], tell: Teller) -> AsyncIterator[bytes]:
    generation = job.generations[0]
    forms: dict[Kind, Form] = {}

    def chunk(piece: Piece, now: str, logprobs: dict[str, Any]) -> bytes:
        return line({**head, "created_at": now, **tell([piece], ()), **logprobs, "done": False})

    def said(part: Part) -> bytes:
        found = b""
        logprobs = _logprobs(job, part.logprobs) if asked.logprobs and part.logprobs else {}
        for kind, text in joined(part.pieces):
            if logprobs:
                found += chunk(Piece(kind, text), _now(), logprobs)
                logprobs = {}
                continue
            if kind not in forms:
                forms[kind] = Form(lambda now, text, kind=kind: chunk(Piece(kind, text), now, {}), 2)
            found += forms[kind](_now(), text)
        return found

    def called(call: _Call) -> bytes:
        return line({**head, "created_at": _now(), **tell([], [call]), "done": False})

    calls = ToldCalls()
    try:
        async for part in job.answers.said_as(said):
            if told := said(part):
                yield told
            for number, call, _, _, is_whole in calls.new(generation.open_calls):
                if is_whole:  # Ollama tells a call when all of it is there
                    yield called(_Call(number, call.id, call.name, decoded(call.arguments)))
        for one in _calls(generation)[calls.n_whole :]:
            yield called(one)
        yield line({**head, "created_at": _now(), **tell([], ()), **_end(job)})
    except Exception as error:
        yield line(job.problem(error).as_ollama())
    finally:
        await job.close()


def _calls(generation: Generation) -> list[_Call]:
    """Those of a whole answer."""
    return [_Call(number, one.id, one.name, one.arguments) for number, one in enumerate(generation.tool_calls)]


def _told_in_chat(pieces: list[Piece], calls: Sequence[_Call]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _of_kind(pieces, "content")}
    if thought := _of_kind(pieces, "reasoning"):
        message["thinking"] = thought
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": call.number, "name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return {"message": message}


def _told_alone(pieces: list[Piece], calls: Sequence[_Call]) -> dict[str, Any]:
    found = {"response": _of_kind(pieces, "content")}
    if thought := _of_kind(pieces, "reasoning"):
        found["thinking"] = thought
    return found


def _of_kind(pieces: list[Piece], wanted: str) -> str:
    return "".join(text for kind, text in pieces if kind == wanted)


def _messages(asked: ChatRequest) -> list[dict[str, Any]]:
    """As OpenAI's interface has them. Raises ApiProblem."""
    found = []
    for number, message in enumerate(asked.messages):
        if message.images:
            raise ApiProblem(400, f"messages.{number} holds images; this server reads texts", "messages")
        plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            plain["reasoning_content"] = message.thinking
        if message.tool_calls:
            plain["tool_calls"] = message.tool_calls
        if message.tool_name:
            plain["name"] = message.tool_name
        if message.tool_call_id:
            plain["tool_call_id"] = message.tool_call_id
        found.append(plain)
    return found


def _logprobs(job: Job, found: list[TokenLogprobs]) -> dict[str, Any]:
    return {"logprobs": logprobs_shape(job.model.tokenizer, found)["content"]}


def _end(job: Job) -> dict[str, Any]:
    stats = job.generations[0].stats
    return {
        "done": True,
        "done_reason": finish_of(job.generations[0]),
        "total_duration": _nanoseconds(monotonic() - job.started),
        "load_duration": 0,
        "prompt_eval_count": stats.n_prompt_tokens,
        "prompt_eval_duration": _nanoseconds(stats.prompt_seconds),
        "eval_count": stats.n_generated_tokens,
        "eval_duration": _nanoseconds(stats.generate_seconds),
        **shifts_of(job.generations),
    }


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
