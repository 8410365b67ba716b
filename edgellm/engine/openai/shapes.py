"""Answers as OpenAI's interface gives them: whole, or in chunks while they come."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edgellm.engine.generation import Generation
from edgellm.engine.sampling import TokenLogprobs
from edgellm.text import Tokenizer
from edgellm.text.calls import Call

FINISH = {"stop": "stop", "length": "length", "context": "length"}
LEAST = -9999.0  # for a token that cannot come, as OpenAI has it; JSON knows no infinity


class ChatShape:
    """What has been asked for of some answers to one chat.

    model:           what they call the model.
    has_logprobs:    each token has its log-probability.
    one_call:        the first call of an answer is taken alone.
    includes_usage:  chunks end with what all of it took.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        has_logprobs: bool = False,
        one_call: bool = False,
        includes_usage: bool = False,
    ) -> None:
        self._tokenizer, self._has_logprobs, self._one_call = tokenizer, has_logprobs, one_call
        self._includes_usage = includes_usage
        self._head = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": model}

    def completion(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """All of it at once; what has not come yet is waited for."""
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_of(generations)}

    def chunks(self, generations: Sequence[Generation]) -> Iterator[dict[str, Any]]:
        """The same in parts while they come. Who stops reading them ends the answers."""
        try:
            for index in range(len(generations)):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            going = {index: self._deltas(index, generation) for index, generation in enumerate(generations)}
            while going:
                for index, deltas in list(going.items()):
                    chunk = next(deltas, None)
                    if chunk is None:
                        del going[index]
                    else:
                        yield chunk
            if self._includes_usage:
                head = {**self._head, "object": "chat.completion.chunk"}
                yield {**head, "choices": [], "usage": usage_of(generations)}
        finally:
            for generation in generations:
                generation.close()

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        content = generation.text
        calls = self._calls(generation)
        message = message_shape(content, generation.reasoning.strip(), calls)
        logprobs = logprobs_shape(self._tokenizer, generation.logprobs) if self._has_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._finish(generation)}

    def _deltas(self, index: int, generation: Generation) -> Iterator[dict[str, Any]]:
        n_told = 0
        for piece in generation.pieces():
            kind = "content" if piece.kind == "content" else "reasoning_content"
            yield self._chunk(index, {kind: piece.text}, self._new_logprobs(generation, n_told))
            n_told = len(generation.logprobs)
        if n_told < len(generation.logprobs):  # of tokens that show no text
            yield self._chunk(index, {"content": ""}, self._new_logprobs(generation, n_told))
        for number, call in enumerate(self._calls(generation)):
            yield self._chunk(index, {"tool_calls": [{"index": number, **call_shape(call)}]})
        yield self._chunk(index, {}, finish_reason=self._finish(generation))

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if self._includes_usage else chunk

    def _new_logprobs(self, generation: Generation, n_told: int) -> dict[str, Any] | None:
        new = generation.logprobs[n_told:] if self._has_logprobs else []
        return logprobs_shape(self._tokenizer, new) if new else None

    def _calls(self, generation: Generation) -> list[Call]:
        return generation.tool_calls[: 1 if self._one_call else None]

    def _finish(self, generation: Generation) -> str | None:
        """None for an answer that was cancelled, which OpenAI has no word for."""
        return "tool_calls" if generation.tool_calls else FINISH.get(generation.finish_reason or "")


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
    }


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
