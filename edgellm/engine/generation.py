"""One answer as it is made: the prompt is computed in pieces, then token after token becomes text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.runner import Runner, Span
from edgellm.engine.sampler import Sampler
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.engine.kv_cache import Sequence
    from edgellm.text import Tokenizer


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


@dataclass
class _Answer:
    """An answer in the making.

    It knows nothing of the Generation that people hold, so that one they let go of ends at once.
    """

    stats: GenerationStats
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    cancelled: bool = False

    def pieces(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        sequence: Sequence,
        prompt: list[int],
        params: SamplingParams,
        n_ctx: int,
    ) -> Generator[str]:
        """The text, piece by piece, while tokens are computed and appended to the sequence."""
        if self.cancelled:
            return self._finish("cancelled")
        started = time.perf_counter()
        sampler, text = Sampler(params), tokenizer.stream(after=prompt[-1])
        pending = prompt[len(sequence) :]
        n_kept = 0 if params.max_tokens == 0 else 1  # the last tokens are computed when the next one is chosen
        while len(pending) > runner.n_batch * n_kept:
            if self.cancelled:
                return self._finish("cancelled")
            runner.forward([Span(sequence, pending[: runner.n_batch], n_logits=0)])
            pending = pending[runner.n_batch :]
            self.stats.prompt_seconds = time.perf_counter() - started
        if params.max_tokens == 0:
            return self._finish("length")
        first_at = started

        def choose(logits: np.ndarray, maxima: np.ndarray) -> int:
            if not self.token_ids:
                self.stats.prompt_seconds = time.perf_counter() - started
            context = [*prompt, *self.token_ids] if params.repeat_penalty != 1 else ()
            return sampler.choose(logits, context, maxima)

        while True:
            if self.cancelled:
                return self._finish("cancelled")
            token_id = runner.choose(sequence, pending, choose)
            pending = [token_id]
            now = time.perf_counter()
            if not self.token_ids:
                self.stats.first_token_seconds = now - started
                first_at = now
            if token_id in tokenizer.stop_ids:
                if rest := text.flush():
                    yield rest
                return self._finish("stop")
            self.token_ids.append(token_id)
            self.stats.n_generated_tokens += 1
            self.stats.generate_seconds = now - first_at
            if piece_of_text := text.push(token_id):
                yield piece_of_text
            reason = self._full(params, len(sequence), n_ctx)
            if reason:
                if rest := text.flush():
                    yield rest
                return self._finish(reason)

    def _full(self, params: SamplingParams, n_cached: int, n_ctx: int) -> str | None:
        if params.max_tokens is not None and len(self.token_ids) >= params.max_tokens:
            return "length"
        return "context" if n_cached >= n_ctx else None

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason


class Generation(Iterator[str]):
    """An iterator over pieces of text, for one thread at a time.

    Whoever iterates gets the errors: UsageError when another thread is at it or the model has been closed,
    ContextOverflowError when other generations hold the whole cache, FileProblem when the model's logits are NaN or
    infinite. An answer ends with its first error.
    """

    _sequence: Sequence | None = None  # what it holds of the cache, until it ends

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        sequence: Sequence,
        prompt: list[int],
        params: SamplingParams,
        n_ctx: int,
    ) -> None:
        self._answer = _Answer(GenerationStats(n_prompt_tokens=len(prompt), n_reused_tokens=len(sequence)))
        self._pieces = self._answer.pieces(runner, tokenizer, sequence, prompt, params, n_ctx)
        self._sequence = sequence

    @property
    def finish_reason(self) -> str | None:
        """None while it goes on; then "stop" (the model ended its text), "length" (max_tokens), "context" (no room
        for more) or "cancelled" (by `cancel`, `close`, Ctrl-C or an error).
        """
        return self._answer.finish_reason

    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
        return self._answer.stats

    @property
    def token_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self._answer.token_ids

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException as end:  # the end, an error, or Ctrl-C
            if _came_second(end):
                raise UsageError("another thread is iterating over this generation; let one thread do it") from None
            self._end()
            raise

    def cancel(self) -> None:
        """Stop soon: before the next piece of the prompt or the next token. From any thread."""
        self._answer.cancelled = True

    def close(self) -> None:
        """Stop now; what was computed stays in the cache for the next prompt."""
        self.cancel()
        self._leave()

    def lose(self, error: Exception) -> None:
        """End with an error, which whoever goes on iterating gets, and hold nothing of the model any more."""
        if self._sequence is not None:  # else it has ended
            pieces, self._pieces = self._pieces, _raising(error)
            self._leave(pieces)

    def _leave(self, pieces: Generator[str] | None = None) -> None:
        """End unless a thread is at work in there: then that thread will."""
        try:
            (pieces or self._pieces).close()
        except ValueError as problem:
            if not _came_second(problem):
                raise
        else:
            self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._answer.finish_reason = self.finish_reason or "cancelled"
            sequence.cache.park(sequence)


def _came_second(problem: BaseException) -> bool:
    """Whether this is what Python says when a thread enters a generator that another thread is in.

    To ask the generator itself would be too late: the other thread may have left it.
    """
    return type(problem) is ValueError and problem.args == ("generator already executing",)


def _raising(error: Exception) -> Generator[str]:
    raise error
    yield
