"""Answers as OpenAI's interface gives them: whole, or in chunks while they come."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.engine.generation import Generation
from edgellm.engine.piece import Piece, joined
from edgellm.engine.sampling import TokenLogprobs
from edgellm.text import Tokenizer
from edgellm.text.calls import Call
from edgellm.text.calls.telling import ToldCalls

FINISH = {"stop": "stop", "length": "length", "context": "length"}
LEAST = -9999.0  # for a token that cannot come, as OpenAI has it; JSON knows no infinity


class ChatShape:
    """Some answers to one chat, whole or as chunks, for the engine's own interface and for the server's.

    model:           what they call the model. created: seconds since 1970.
    has_logprobs:    each token has its log-probability.
    includes_usage:  chunks end with what all of it took.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        has_logprobs: bool = False,
        includes_usage: bool = False,
        created: int | None = None,
    ) -> None:
        self._tokenizer, self._has_logprobs, self._includes_usage = tokenizer, has_logprobs, includes_usage
        created = int(time.time()) if created is None else created
        self._id, self._about = f"chatcmpl-{secrets.token_hex(16)}", {"created": created, "model": model}

    def completion(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """All of it at once; what has not come yet is waited for."""
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_of(generations)}

    def chunks(self, generations: Sequence[Generation]) -> Iterator[dict[str, Any]]:
        """The same in parts while they come. Who stops reading them ends the answers."""
        try:
            yield from self.beginning(len(generations))
            going = [_Going(index, generation) for index, generation in enumerate(generations)]
            while going:
                Generation.advance([one.generation for one in going])
                for one in going:
                    yield from self._new(one)
                going = [one for one in going if not one.is_over]
            yield from self.ending(generations)
        finally:
            for generation in generations:
                generation.close()

    # --- the chunks of a stream, in their order -------------------------------------------------------------

    def beginning(self, n: int) -> Iterator[dict[str, Any]]:
        """What n answers begin with."""
        for index in range(n):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def part(
        self, index: int, pieces: Iterable[Piece], logprobs: Sequence[TokenLogprobs] = ()
    ) -> Iterator[dict[str, Any]]:
        """New pieces of an answer. logprobs: of its new tokens, whose text may come later, or never."""
        told = logprobs_shape(self._tokenizer, logprobs) if self._has_logprobs and logprobs else None
        for piece in joined(pieces):
            name = "content" if piece.kind == "content" else "reasoning_content"
            yield self._chunk(index, {name: piece.text}, told)
            told = None
        if told is not None:
            yield self._chunk(index, {"content": ""}, told)

    def calls(self, index: int, generation: Generation, told: ToldCalls) -> Iterator[dict[str, Any]]:
        """What is new of the calls of an answer."""
        for number, call, is_first, text, _ in told.new(generation.open_calls):
            if not is_first and not text:
                continue
            delta: dict[str, Any] = {"index": number, "function": {"arguments": text}}
            if is_first:
                delta |= {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": text}}
            yield self._chunk(index, {"tool_calls": [delta]})

    def end(self, index: int, generation: Generation, n_told: int = 0) -> Iterator[dict[str, Any]]:
        """The calls of an answer that has ended, and why it has. n_told: calls that were told before."""
        for number, call in list(enumerate(generation.tool_calls))[n_told:]:
            yield self._chunk(index, {"tool_calls": [{"index": number, **call_shape(call)}]})
        yield self._chunk(index, {}, finish_reason=finish_of(generation))

    def ending(self, generations: Sequence[Generation]) -> Iterator[dict[str, Any]]:
        """What comes behind all answers."""
        if self._includes_usage:
            yield {**self.aside(), "usage": usage_of(generations)}

    def aside(self) -> dict[str, Any]:
        """A chunk that belongs to no answer."""
        chunk = {**self._head("chat.completion.chunk"), "choices": []}
        return {**chunk, "usage": None} if self._includes_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, **self._about}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.aside(), "choices": [choice]}

    def _new(self, one: _Going) -> Iterator[dict[str, Any]]:
        """What there is to tell of an answer, and was not told yet."""
        index, generation = one.index, one.generation
        pieces = generation.take()
        one.is_over = generation.finish_reason is not None
        yield from self.part(index, pieces, generation.logprobs[one.n_logprobs :])
        one.n_logprobs = len(generation.logprobs)
        yield from self.calls(index, generation, one.calls)
        if one.is_over:
            yield from self.end(index, generation, one.calls.n_calls)

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        message = message_shape(generation.text, generation.reasoning.strip(), generation.tool_calls)
        logprobs = logprobs_shape(self._tokenizer, generation.logprobs) if self._has_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_of(generation)}


@dataclass
class _Going:
    """An answer that is told in chunks. n_logprobs: so many of its log-probabilities were told."""

    index: int
    generation: Generation
    calls: ToldCalls = field(default_factory=ToldCalls)
    n_logprobs: int = 0
    is_over: bool = False


def finish_of(generation: Generation) -> str | None:
    """Why an answer has ended; None for one that was cancelled, which OpenAI has no word for.

    An answer that was cut off says so, also behind calls that are whole.
    """
    reason = FINISH.get(generation.finish_reason or "")
    return "tool_calls" if generation.tool_calls and reason != "length" else reason


def message_shape(content: str, thoughts: str, calls: Sequence[Call]) -> dict[str, Any]:
    """What the model said, thought and called."""
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = [call_shape(call) for call in calls]
    return message


def call_shape(call: Call) -> dict[str, Any]:
    """A call with its arguments as a text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def usage_of(generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of some answers to one prompt, which counts once."""
    stats = generations[0].stats
    n_answer = sum(generation.stats.n_generated_tokens for generation in generations)
    return {
        "prompt_tokens": stats.n_prompt_tokens,
        "completion_tokens": n_answer,
        "total_tokens": stats.n_prompt_tokens + n_answer,
        "prompt_tokens_details": {"cached_tokens": stats.n_reused_tokens},
        **shifts_of(generations),
    }


def shifts_of(generations: Iterable[Generation]) -> dict[str, int]:
    """How often answers outgrew the context and went on without the oldest of what was read; nothing if never."""
    n_shifts = sum(generation.stats.n_shifts for generation in generations)
    return {"context_shifts": n_shifts} if n_shifts else {}


def logprobs_shape(tokenizer: Tokenizer, found: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """Tokens with their bytes, for a character may consist of several tokens."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id) or tokenizer.token_name(token_id).encode()
        known = logprob if math.isfinite(logprob) else LEAST
        return {"token": raw.decode("utf-8", "replace"), "logprob": known, "bytes": list(raw)}

    content = [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*other) for other in one.top]} for one in found
    ]
    return {"content": content, "refusal": None}
