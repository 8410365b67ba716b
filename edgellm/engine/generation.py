"""One answer as it is made: the prompt is computed, then token after token becomes text."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.answer_plan import PLAIN_TEXT, AnswerPlan
from edgellm.engine.answer_text import AnswerText, Shown
from edgellm.engine.piece import Piece
from edgellm.engine.request import Request
from edgellm.engine.sampling import Sampler, TokenLogprobs
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.stats import GenerationStats
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.engine.answer_form import AnswerReader
    from edgellm.engine.structure.constraint import Constraint
    from edgellm.text import Tokenizer
    from edgellm.text.calls import Call

ANOTHER_READS = "another thread is iterating over this generation; let one thread do it"
MOST_UNREAD = 8  # tokens of an answer that are computed along with others before somebody reads them


class _Answer(Request):
    """A text in the making: every token that is chosen is the next one to be computed.

    It knows nothing of the Generation that people hold, so that one they let go of ends at once.

    unread:       tokens and their texts that nobody has taken yet. While others are computed, this one goes on for a
                  few tokens.
    rest:         text that is left at the end.
    most_unread:  so many tokens.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        n_ctx: int,
        adapters: AdapterSet,
        plan: AnswerPlan,
    ) -> None:
        super().__init__(list(prompt), adapters=adapters)
        self.unread: deque[Shown] = deque()
        self.rest = ""
        self.most_unread = MOST_UNREAD
        self.stats = GenerationStats(n_prompt_tokens=len(prompt))
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self._params, self._stop_ids, self._n_ctx = params, tokenizer.stop_ids, n_ctx
        self._text: AnswerText | None = AnswerText(
            # In a given structure a space in front is the text's own.
            tokenizer.stream(after=None if plan.constraint else prompt[-1], showing=plan.shows),
            params.stop,
            params.banned_strings,
        )
        self._constraint = plan.constraint
        # Tokens that must come are taken without the model, unless others could be asked for or logits are wanted.
        self._takes_forced = params.logprobs is None and not params.banned_strings
        rules = plan.rules_for(tokenizer, len(prompt), n_ctx, params)
        for rule in rules:
            rule.begin(self.tokens)
        never = [i for text in params.banned_strings for i in tokenizer.ids_with(text)]
        self._sampler: Sampler | None = Sampler(params, tokenizer.token_bytes, never, rules)
        self._started: float | None = None
        self._first_at: float | None = None
        self._is_cut = False  # it has fewer tokens than are in the cache

    def start(self) -> None:
        """The clock runs from here on."""
        self._started = time.perf_counter()

    @property
    def end(self) -> int:
        return len(self.tokens) if len(self.unread) < self.most_unread else 0

    @property
    def n_pending(self) -> int:
        if self._is_cut:
            if self.sequence is not None and self.n_cached >= len(self.tokens):
                self.sequence.trim(len(self.tokens) - 1)  # the last token is computed anew, for its logits
            self._is_cut = False
        return super().n_pending

    @property
    def is_ready(self) -> bool:
        return bool(self.unread) or super().is_ready

    @property
    def first_wanted(self) -> int:
        return len(self.tokens) - (1 if self._params.max_tokens != 0 else 0)

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        text, sampler = self._text, self._sampler
        if position != len(self.tokens) - 1 or text is None or sampler is None:
            return  # a step that was interrupted has chosen what comes after it, or nobody wants it
        if self._first_at is None:
            self.stats.prompt_seconds = self._seconds()
        while True:
            state = sampler.state if text.takes_back else None
            token_id = sampler.choose(logits, self._written(), maxima, text.forbidden)
            if self._first_at is None:
                self.stats.first_token_seconds = self._seconds()
                self._first_at = time.perf_counter()
            if token_id in self._stop_ids:
                self._finish("stop", text)
                return
            n_top = self._params.logprobs
            logprobs = None if n_top is None else logprobs_of(token_id, logits, maxima, n_top)
            back = text.push(token_id, logprobs, state)
            if back is None:
                break
            sampler.state = back.sampler
            if back.n_tokens > 1:
                self._cut(back.n_tokens - 1)
                return
        self._add(token_id, text)
        if self._constraint is not None and self._takes_forced:
            self._add_forced(self._constraint, text)
        self.stats.generate_seconds = time.perf_counter() - self._first_at
        if not self.is_over:
            self.unread.extend(text.shown())

    def _add_forced(self, constraint: Constraint, text: AnswerText) -> None:
        """The tokens that must come next are taken without the model, which computes them together afterwards."""
        for token_id in () if self.is_over else constraint.forced():
            if token_id in self._stop_ids:
                self._finish("stop", text)
            if self.is_over:
                return
            text.push(token_id)
            self._add(token_id, text)

    def _add(self, token_id: int, text: AnswerText) -> None:
        """A token is part of the answer now, and may be its last."""
        self.stats.n_generated_tokens += 1
        self.tokens.append(token_id)
        constraint = self._constraint
        if constraint is not None:
            constraint.follow(self.tokens)
        if text.stop_string is not None:
            self.stop_string = text.stop_string
            self._finish("stop", text)
        elif constraint is not None and constraint.is_complete:
            self._finish("stop", text)
        elif self.stats.n_generated_tokens == self._params.max_tokens:
            self._finish("length", text)
        elif len(self.tokens) > self._n_ctx:
            self._finish("context", text)

    def _cut(self, n_tokens: int) -> None:
        """Take back the last tokens: others are to come in their place."""
        self._is_cut = True
        del self.tokens[len(self.tokens) - n_tokens :]
        self.stats.n_generated_tokens -= n_tokens

    def _written(self) -> list[int]:
        """The tokens without those of an adapter."""
        n_virtual = self.adapters.n_virtual
        return self.tokens[n_virtual:] if n_virtual else self.tokens

    def progressed(self) -> None:
        self.stats.n_reused_tokens = self.n_reused
        if self._first_at is None and not self.is_over:
            self.stats.prompt_seconds = self._seconds()
            if self.n_cached == len(self.tokens):  # a prompt that nobody wants an answer to
                self._finish("length", self._text)

    def forget(self) -> None:
        """Hold nothing of the model any more."""
        self._text = self._sampler = self._constraint = None

    def _seconds(self) -> float:
        return time.perf_counter() - self._started if self._started is not None else 0.0

    def _finish(self, reason: str, text: AnswerText | None) -> None:
        if text is not None:
            shown, self.rest = text.finish()
            self.unread.extend(shown)
        self.finish_reason = reason
        self.is_over = True


class Generation(Iterator[str]):
    """An iterator over pieces of text, for one thread at a time. Nothing is computed before the first is asked for.

    Whoever iterates gets the errors: UsageError when another thread is at it or the model has been closed, FileProblem
    when the model's logits are NaN or infinite. An answer ends with its first error.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: SamplingParams,
        n_ctx: int,
        adapters: AdapterSet = NO_ADAPTERS,
        plan: AnswerPlan = PLAIN_TEXT,
    ) -> None:
        self._scheduler = scheduler
        self._answer = _Answer(prompt, params, tokenizer, n_ctx, adapters, plan)
        self._reader: AnswerReader | None = None
        if plan.form is not None:
            from edgellm.engine.answer_form import AnswerReader

            self._reader = AnswerReader(plan.form)
        self._told: deque[Piece] = deque()  # pieces that nobody has taken yet
        self._parts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._stop_string: str | None = None
        self._together: list[weakref.ref[Generation]] = []
        self._finish_reason: str | None = None
        self._lost: Exception | None = None
        self._is_submitted = False
        self._reading = threading.Lock()

    @property
    def finish_reason(self) -> str | None:
        """None while it goes on; then "stop" (the model ended its text, or a stop string came), "length" (max_tokens),
        "context" (no room for more) or "cancelled" (by `cancel`, `close`, Ctrl-C or an error).
        """
        return self._finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended it; None when the model ended its text by itself, or it did not stop."""
        return self._stop_string

    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
        return self._answer.stats

    @property
    def n_prompt_done(self) -> int:
        """Tokens of the prompt that are in the cache by now. From any thread, also before the first piece comes."""
        sequence = self._answer.sequence  # which another thread may take away
        return min(len(sequence) if sequence is not None else 0, self._answer.stats.n_prompt_tokens)

    @property
    def token_ids(self) -> list[int]:
        """The tokens generated so far, also those of a stop string, which is not shown."""
        return self._token_ids

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of each of `token_ids`, its log-probability and those of alternatives; empty unless `logprobs` asked."""
        return self._logprobs

    @property
    def content(self) -> str:
        """What has been said so far: all pieces that iterating gave, without thoughts and calls."""
        return "".join(self._parts["content"])

    @property
    def reasoning(self) -> str:
        """What has been thought so far; empty for a model that does not mark its thoughts."""
        return "".join(self._parts["reasoning"])

    @property
    def tool_calls(self) -> list[Call]:
        """The tools that the model wants to be called; empty before the end, and when there are none."""
        return self._reader.calls if self._reader is not None else []

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be put behind those that it answers."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning.strip():
            message["reasoning_content"] = self.reasoning.strip()
        if self.tool_calls:
            message["tool_calls"] = [call.as_message() for call in self.tool_calls]
        return message

    def pieces(self) -> Iterator[Piece]:
        """The rest of the answer with its thoughts, as they come; what is read here, iterating does not give again."""
        with suppress(StopIteration):
            while True:
                yield self._next()

    def __next__(self) -> str:
        while (piece := self._next()).kind != "content":
            pass
        return piece.text

    def _next(self) -> Piece:
        if not self._reading.acquire(blocking=False):
            raise UsageError(ANOTHER_READS)
        try:
            while True:
                if self._told:
                    piece = self._told.popleft()
                    self._parts[piece.kind].append(piece.text)
                    return piece
                if self._finish_reason is not None:
                    break
                self._tell(self._next_piece())
            lost, self._lost = self._lost or StopIteration(), None
            try:
                raise lost
            finally:
                del lost  # which holds this frame, and all that it sees
        except StopIteration:
            raise
        except BaseException:  # an error, or Ctrl-C
            self._end("cancelled")
            raise
        finally:
            self._reading.release()

    def _tell(self, text: str) -> None:
        """Take in the text of a token, or what is left at the end."""
        if self._reader is None:
            if text:
                self._told.append(Piece("content", text))
            return
        self._told.extend(self._reader.push(text))
        if self._finish_reason is not None:
            self._told.extend(self._reader.finish())

    def _next_piece(self) -> str:
        """The text of the next token, which may be none; at the end, what is left."""
        answer = self._answer
        self._start()
        for other in self._together:
            if (sibling := other()) is not None:
                sibling._start()
        if not answer.is_cancelled:
            self._scheduler.wait(answer)
        if answer.is_cancelled:
            self._end("cancelled")
            return ""
        if answer.unread:
            shown = answer.unread.popleft()
            self._token_ids.append(shown.token_id)
            if shown.logprobs is not None:
                self._logprobs.append(shown.logprobs)
            return shown.text
        self._stop_string = answer.stop_string
        self._end(answer.finish_reason or "cancelled")
        return answer.rest

    def _start(self) -> None:
        if not self._is_submitted and self._finish_reason is None:
            self._is_submitted = True
            self._answer.start()
            self._scheduler.submit(self._answer)

    @staticmethod
    def advance(generations: Sequence[Generation]) -> None:
        """Compute a step for answers of one model, unless one of them has pieces that can be taken already.

        For one thread that reads many answers: `take` gives the pieces of each. Waits while other threads compute.
        """
        for generation in generations:
            generation._start()
        if going := [generation for generation in generations if generation._finish_reason is None]:
            going[0]._scheduler.advance([generation._answer for generation in going])

    def take(self) -> list[Piece]:
        """The pieces that are there, without computing any; `finish_reason` tells whether more can come.

        Raises what iterating would.
        """
        if not self._reading.acquire(blocking=False):
            raise UsageError(ANOTHER_READS)
        try:
            while self._finish_reason is None and self._answer.is_ready:
                self._tell(self._next_piece())
            pieces = list(self._told)
            self._told.clear()
            for piece in pieces:
                self._parts[piece.kind].append(piece.text)
            return pieces
        except BaseException:
            self._end("cancelled")
            raise
        finally:
            self._reading.release()

    @staticmethod
    def together(generations: list[Generation]) -> None:
        """Let answers to one prompt begin at the same time, so that it is computed once, and each token for all."""
        for generation in generations:
            generation._together = [weakref.ref(other) for other in generations if other is not generation]
            generation._answer.most_unread = sys.maxsize

    def cancel(self) -> None:
        """Stop soon, also in the middle of a long prompt. From any thread."""
        self._scheduler.cancel(self._answer)

    def close(self) -> None:
        """Stop now; what was computed stays in the cache for the next prompt."""
        self.cancel()
        if self._reading.acquire(blocking=False):
            try:
                self._end("cancelled")
            finally:
                self._reading.release()

    def lose(self, error: Exception) -> None:
        """End with an error, which whoever goes on iterating gets, and hold nothing of the model any more."""
        if self._finish_reason is None and self._reading.acquire(blocking=False):  # who is reading is told anyway
            try:
                self._lost = error
                self._end("cancelled")
            finally:
                self._reading.release()

    def __del__(self) -> None:
        if hasattr(self, "_reading"):  # it was made
            self._end("cancelled")

    def _end(self, reason: str) -> None:
        if self._finish_reason is None:
            self._finish_reason = reason
            self._answer.is_cancelled |= reason == "cancelled"
            if self._is_submitted:
                self._scheduler.retire(self._answer)
            self._answer.forget()
