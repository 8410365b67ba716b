"""One answer as it is made: the prompt is computed, then token after token becomes text."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.answer_text import AnswerText, Shown
from edgellm.engine.request import Request
from edgellm.engine.sampling import Sampler, TokenLogprobs
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.text import Tokenizer

MOST_UNREAD = 8  # tokens of an answer that are computed along with others before somebody reads them


@dataclass
class GenerationStats:
    """What a generation took. Seconds are wall-clock time.

    n_reused_tokens:   tokens of the prompt that were in the cache already and not computed again.
    n_guessed_tokens:  tokens that were guessed and checked along with others (speculation).
    n_right_tokens:    those of them that came, and took no pass of their own.
    """

    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
    n_guessed_tokens: int = 0
    n_right_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        computed = self.n_prompt_tokens - self.n_reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which the prompt gave."""
        return (self.n_generated_tokens - 1) / self.generate_seconds if self.generate_seconds else 0.0


class _Answer(Request):
    """A text in the making: every token that is chosen is the next one to be computed.

    It knows nothing of the Generation that people hold, so that one they let go of ends at once.

    unread:       tokens and their texts that nobody has taken yet. While others are computed, this one goes on for a
                  few tokens.
    rest:         text that is left at the end.
    most_unread:  so many tokens.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, tokenizer: Tokenizer, n_ctx: int, adapters: AdapterSet
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
            tokenizer.stream(after=prompt[-1]), params.stop, params.banned_strings
        )
        never = [i for text in params.banned_strings for i in tokenizer.ids_with(text)]
        self._sampler: Sampler | None = Sampler(params, tokenizer.token_bytes, never)
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

    @property
    def most_guesses(self) -> int:
        n = self._n_ctx - len(self.tokens)
        if self._params.max_tokens is not None:  # the last token is chosen, and not computed
            n = min(n, self._params.max_tokens - self.stats.n_generated_tokens - 1)
        return max(0, n)

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
        self.stats.n_generated_tokens += 1
        self.stats.generate_seconds = time.perf_counter() - self._first_at
        self.tokens.append(token_id)
        if text.stop_string is not None:
            self.stop_string = text.stop_string
            self._finish("stop", text)
        elif self.stats.n_generated_tokens == self._params.max_tokens:
            self._finish("length", text)
        elif len(self.tokens) > self._n_ctx:
            self._finish("context", text)
        else:
            self.unread.extend(text.shown())

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
        self.stats.n_guessed_tokens, self.stats.n_right_tokens = self.n_guessed, self.n_right
        if self._first_at is None and not self.is_over:
            self.stats.prompt_seconds = self._seconds()
            if self.n_cached == len(self.tokens):  # a prompt that nobody wants an answer to
                self._finish("length", self._text)

    def forget(self) -> None:
        """Hold nothing of the model any more."""
        self._text = self._sampler = None

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
    ) -> None:
        self._scheduler = scheduler
        self._answer = _Answer(prompt, params, tokenizer, n_ctx, adapters)
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
    def text_ids(self) -> list[int]:
        """All tokens of the text, the prompt's first, as the cache knows them."""
        return list(self._answer.tokens)

    @property
    def adapters(self) -> AdapterSet:
        """What it is computed with beside the model."""
        return self._answer.adapters

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of each of `token_ids`, its log-probability and those of alternatives; empty unless `logprobs` asked."""
        return self._logprobs

    def __next__(self) -> str:
        if not self._reading.acquire(blocking=False):
            raise UsageError("another thread is iterating over this generation; let one thread do it")
        try:
            while self._finish_reason is None:
                if piece := self._next_piece():
                    return piece
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
