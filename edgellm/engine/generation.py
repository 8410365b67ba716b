"""One answer as it is made: the prompt is computed, then token after token becomes text."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.request import Request
from edgellm.engine.sampler import Sampler
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.text import Tokenizer
    from edgellm.text.stream import StreamDecoder

MOST_UNREAD = 8  # tokens of an answer that are computed along with others before somebody reads them


@dataclass
class GenerationStats:
    """What a generation took. Seconds are wall-clock time.

    n_reused_tokens:  tokens of the prompt that were in the cache already and not computed again.
    """

    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
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

    unread:  tokens that nobody has taken yet. While others are computed, this one goes on for a few tokens.
    """

    def __init__(self, prompt: list[int], params: SamplingParams, stop_ids: Collection[int], n_ctx: int) -> None:
        super().__init__(list(prompt))
        self.unread: deque[int] = deque()
        self.stats = GenerationStats(n_prompt_tokens=len(prompt))
        self.finish_reason: str | None = None
        self._params, self._stop_ids, self._n_ctx = params, stop_ids, n_ctx
        self._sampler = Sampler(params)
        self._started = self._first_at = 0.0

    def start(self) -> None:
        """The clock runs from here on."""
        self._started = time.perf_counter()

    @property
    def end(self) -> int:
        return len(self.tokens) if len(self.unread) < MOST_UNREAD else 0

    @property
    def is_ready(self) -> bool:
        return bool(self.unread) or super().is_ready

    @property
    def first_wanted(self) -> int:
        return len(self.tokens) - (1 if self._params.max_tokens != 0 else 0)

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        if position != len(self.tokens) - 1:
            return  # a step that was interrupted has chosen what comes after it
        if not self.stats.n_generated_tokens:
            self.stats.prompt_seconds = time.perf_counter() - self._started
        token_id = self._sampler.choose(logits, self.tokens, maxima)
        now = time.perf_counter()
        if not self.stats.n_generated_tokens:
            self.stats.first_token_seconds = now - self._started
            self._first_at = now
        if token_id in self._stop_ids:
            self._finish("stop")
            return
        self.stats.n_generated_tokens += 1
        self.stats.generate_seconds = now - self._first_at
        self.tokens.append(token_id)
        self.unread.append(token_id)
        if self.stats.n_generated_tokens == self._params.max_tokens:
            self._finish("length")
        elif len(self.tokens) > self._n_ctx:
            self._finish("context")

    def progressed(self) -> None:
        self.stats.n_reused_tokens = self.n_reused
        if not self.stats.n_generated_tokens and not self.is_over:
            self.stats.prompt_seconds = time.perf_counter() - self._started
            if self.n_cached == len(self.tokens):  # a prompt that nobody wants an answer to
                self._finish("length")

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        self.is_over = True


class Generation(Iterator[str]):
    """An iterator over pieces of text, for one thread at a time. Nothing is computed before the first is asked for.

    Whoever iterates gets the errors: UsageError when another thread is at it or the model has been closed, FileProblem
    when the model's logits are NaN or infinite. An answer ends with its first error.
    """

    def __init__(
        self, scheduler: Scheduler, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams, n_ctx: int
    ) -> None:
        self._scheduler = scheduler
        self._answer = _Answer(prompt, params, tokenizer.stop_ids, n_ctx)
        self._text: StreamDecoder | None = tokenizer.stream(after=prompt[-1])
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None
        self._lost: Exception | None = None
        self._is_submitted = False
        self._reading = threading.Lock()

    @property
    def finish_reason(self) -> str | None:
        """None while it goes on; then "stop" (the model ended its text), "length" (max_tokens), "context" (no room
        for more) or "cancelled" (by `cancel`, `close`, Ctrl-C or an error).
        """
        return self._finish_reason

    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
        return self._answer.stats

    @property
    def n_prompt_done(self) -> int:
        """Tokens of the prompt that are in the cache by now. From any thread, also while the first piece is waited for.
        """
        sequence = self._answer.sequence  # which another thread may take away
        return min(len(sequence) if sequence is not None else 0, self._answer.stats.n_prompt_tokens)

    @property
    def token_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self._token_ids

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
        answer, text = self._answer, self._text
        assert text is not None  # as long as it goes on
        if not self._is_submitted:
            answer.start()
            self._is_submitted = True
            self._scheduler.submit(answer)
        if not answer.is_cancelled:
            self._scheduler.wait(answer)
        if answer.is_cancelled:
            self._end("cancelled")
            return ""
        if answer.unread:
            token_id = answer.unread.popleft()
            self._token_ids.append(token_id)
            return text.push(token_id)
        rest = text.flush()
        self._end(answer.finish_reason or "cancelled")
        return rest

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
            self._finish_reason, self._text = reason, None
            self._answer.is_cancelled |= reason == "cancelled"
            if self._is_submitted:
                self._scheduler.retire(self._answer)
