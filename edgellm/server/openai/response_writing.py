"""An answer of /v1/responses: its items, whole or as the events that tell of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from edgellm.engine import Generation
from edgellm.engine.openai.shapes import logprobs_shape, shifts_of
from edgellm.engine.piece import joined
from edgellm.engine.sampling import TokenLogprobs
from edgellm.server.chatting import Chat
from edgellm.server.driver import Part
from edgellm.server.openai.chat import finish_of
from edgellm.server.openai.response_types import ResponsesRequest
from edgellm.server.openai.shapes import new_id
from edgellm.server.server import Job
from edgellm.server.streams import Form, as_json, event
from edgellm.text.calls import Call
from edgellm.text.calls.following import OpenCall
from edgellm.text.calls.telling import ToldCalls


class Writing:
    """One answer, and the events that tell of it."""

    def __init__(
        self, job: Job, asked: ResponsesRequest, wanted: Chat, name: str, store: Callable[[Writing], None]
    ) -> None:
        self.id = name
        self.output: list[dict[str, Any]] = []
        self._job, self._asked, self._wanted, self._store = job, asked, wanted, store
        self._status = "in_progress"
        self._reason: str | None = None
        self._number = -1  # of the last event
        self._kind = ""  # of the item that is open
        self._form: Form | None = None  # of text in it
        self._calls = ToldCalls()

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
        calls = [_call(call, as_json(call.arguments)) for call in generation.tool_calls]
        begun = generation.open_calls[len(calls) :] if self._status == "incomplete" else []
        calls += [_call(call, call.arguments, "incomplete") for call in begun]
        if generation.content or not calls:
            self.output.append(self._message(generation.content))
        if self.output and not calls:
            self.output[-1]["status"] = self._status
        self.output += calls
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
                # What is said comes before the calls; once there is one, behind them.
                parts = [self._called, self._said] if self._calls.n_calls else [self._said, self._called]
                if told := b"".join([tell(part) for tell in parts]):
                    yield told
            self._conclude()
            yield b"".join(self._closing())
            for call in self._generation.tool_calls[self._calls.n_calls :]:
                yield b"".join(
                    [*self._opening("call", _call(call)), self._more(as_json(call.arguments)), *self._closing()]
                )
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
                item = self._message("") if kind == "content" else _reasoning("")
                found += [*self._closing(), *self._opening(kind, item)]
            self.output[-1]["content"][0]["text"] += text
            found.append(self._delta(text, logprobs))
            logprobs = []
        return b"".join(found)

    def _called(self, part: Part) -> bytes:
        """The events of what is new of calls."""
        found = []
        for _, call, is_first, text, is_whole in self._calls.new(self._generation.open_calls):
            if is_first:
                found += [*self._closing(), *self._opening("call", _call(call))]
            if text:
                found.append(self._more(text))
            if is_whole:
                found += self._closing()
        return b"".join(found)

    def _opening(self, kind: str, item: dict[str, Any]) -> list[bytes]:
        """A new item is there, of which nothing is told yet."""
        self._kind, self._form = kind, None
        item["status"] = "in_progress"
        self.output.append(item)
        told = item if kind == "call" else {**item, "content": []}
        found = [self._event("response.output_item.added", output_index=len(self.output) - 1, item=told)]
        if kind != "call":
            found.append(self._event("response.content_part.added", **self._part_place(), part=item["content"][0]))
        return found

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _part_place(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}

    def _more(self, arguments: str) -> bytes:
        """More of the arguments of the call that is open."""
        self.output[-1]["arguments"] += arguments
        return self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _delta(self, text: str, logprobs: list[TokenLogprobs]) -> bytes:
        if logprobs or self._form is None:
            place, is_said = self._part_place(), self._kind == "content"
            name = "response.output_text.delta" if is_said else "response.reasoning_text.delta"
            told = {"logprobs": logprobs_shape(self._job.model.tokenizer, logprobs)["content"]} if is_said else {}
            form = Form(lambda number, text: _numbered(number, name, {**place, "delta": text, **told}), 2)
            if logprobs:
                return form(self._next_number(), text)
            self._form = form
        return self._form(self._next_number(), text)

    def _closing(self) -> list[bytes]:
        """The open item has ended; none is open then."""
        kind, self._kind = self._kind, ""
        if not kind:
            return []
        item = self.output[-1]
        # What comes before a call, or before another part, is whole.
        is_cut = self._status == "incomplete" and (kind == "call" or not self._generation.tool_calls)
        item["status"] = "incomplete" if is_cut else "completed"
        done = self._call_done(item) if kind == "call" else self._parts_done(kind, item)
        return [*done, self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)]

    def _call_done(self, item: dict[str, Any]) -> list[bytes]:
        told = {"name": item["name"], "arguments": item["arguments"]}
        return [self._event("response.function_call_arguments.done", **self._place(), **told)]

    def _parts_done(self, kind: str, item: dict[str, Any]) -> list[bytes]:
        part, place = item["content"][0], self._part_place()
        if kind == "content":
            if "logprobs" in self._wanted.keywords:
                found = self._generation.logprobs
                part["logprobs"] = logprobs_shape(self._job.model.tokenizer, found)["content"]
            done = self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        else:
            done = self._event("response.reasoning_text.done", **place, text=part["text"])
        return [done, self._event("response.content_part.done", **place, part=part)]


def _numbered(number: int, kind: str, fields: dict[str, Any]) -> bytes:
    return event({"type": kind, "sequence_number": number, **fields}, kind)


def _reasoning(thought: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": thought}]
    return {"type": "reasoning", "id": new_id("rs"), "summary": [], "content": content, "status": "completed"}


def _call(call: Call | OpenCall, arguments: str = "", status: str = "completed") -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": new_id("fc"),
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }


def is_half_a_call(item: Mapping[str, Any]) -> bool:
    """Whether an item is a call that was cut off."""
    return item.get("type") == "function_call" and item.get("status") == "incomplete"
