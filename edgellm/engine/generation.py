"""One answer as people hold it: pieces of text that come while they are made."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgellm import checks
from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.answer import Answer
from edgellm.engine.answer_plan import PLAIN_TEXT, AnswerPlan
from edgellm.engine.piece import Piece
from edgellm.engine.sampling import TokenLogprobs
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.stats import GenerationStats
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgellm.engine.answer_form import AnswerReader
    from edgellm.engine.shifting import Shift
    from edgellm.text import Tokenizer
    from edgellm.text.calls import Call
    from edgellm.text.calls.following import OpenCall

ANOTHER_READS = "another thread is iterating over this generation; let one thread do it"


class Generation(Iterator[str]):
    """An iterator over pieces of text, for one thread at a time. Nothing is computed before the first is asked for.

    `text`, or str(), is all of it at once. As a context manager it ends when its block does.

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
        shift: Shift | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._answer = Answer(prompt, params, tokenizer, n_ctx, adapters, plan, shift, scheduler.runner.loops)
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
        self._on_prompt: Callable[[int, int], object] | None = None
        self._reading = threading.Lock()  # by the thread that iterates, or by one that ends it while none does
        self._ending = threading.RLock()  # around the second

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
        return self._answer.n_prompt_done

    @property
    def token_ids(self) -> list[int]:
        """The tokens generated so far, also those of a stop string, which is not shown."""
        return self._token_ids

    @property
    def text_ids(self) -> list[int]:
        """All tokens of the text, the prompt's first, as the cache knows them: after a shift, what is still read."""
        return list(self._answer.tokens)

    @property
    def adapters(self) -> AdapterSet:
        """What it is computed with beside the model."""
        return self._answer.adapters

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of each of `token_ids`, its log-probability and those of alternatives; empty unless `logprobs` asked.

        Tokens that stand in a stop string from their beginning have none.
        """
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
    def open_calls(self) -> list[OpenCall]:
        """Calls that have begun, with as much of their arguments as there is, where a grammar makes that known."""
        return self._reader.open_calls if self._reader is not None else []

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be put behind those that it answers."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning.strip():
            message["reasoning_content"] = self.reasoning.strip()
        if self.tool_calls:
            message["tool_calls"] = [call.as_message() for call in self.tool_calls]
        return message

    @property
    def text(self) -> str:
        """All of the answer, without thoughts and calls: what has not come yet is waited for."""
        for _ in self:
            pass
        return self.content

    def __str__(self) -> str:
        return self.text

    def on_prompt(self, progress: Callable[[int, int], object]) -> Self:
        """Let progress(done, total) hear of the prompt's tokens while they are computed; gives this generation.

        It is called by the thread that iterates, and what it raises ends the answer. Of a prompt that is in the cache
        already, it hears once.
        """
        self._on_prompt = checks.function("progress", progress)
        self._answer.tells_prompt = self._on_prompt is not None
        return self

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
        self._begin_reading()
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

    def _begin_reading(self) -> None:
        """Raises UsageError while another thread iterates; one that ends the answer is waited for, it is soon done."""
        if not self._reading.acquire(blocking=False):
            with self._ending:
                is_mine = self._reading.acquire(blocking=False)
            if not is_mine:
                raise UsageError(ANOTHER_READS)

    def _tell(self, text: str) -> None:
        """Take in the text of a token, or what is left at the end."""
        if self._reader is None:
            if text:
                self._told.append(Piece("content", text))
            return
        self._told.extend(self._reader.push(text))
        if self._reader.is_over and self._finish_reason is None:
            self._end("stop")
        if self._finish_reason is not None:
            is_cut = self._finish_reason != "stop" or self._stop_string is not None
            self._told.extend(self._reader.finish(is_cut, self._stop_string or ""))

    def _next_piece(self) -> str:
        """The text of the next token, which may be none; at the end, what is left."""
        answer = self._answer
        self._start()
        for other in self._together:
            if (sibling := other()) is not None:
                sibling._start()
        if not answer.is_cancelled:
            self._scheduler.wait(answer)
        if self._on_prompt is not None and answer.has_progress:
            answer.n_told = answer.n_prompt_done
            self._on_prompt(answer.n_told, answer.stats.n_prompt_tokens)
            return ""
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
        self._begin_reading()
        try:
            while self._finish_reason is None and self._answer.is_ready:
                self._tell(self._next_piece())
            if self._lost is not None:
                lost, self._lost = self._lost, None
                try:
                    raise lost
                finally:
                    del lost  # which holds this frame, and all that it sees
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

    def go_on(self) -> None:
        """Begin now, and be computed to the end while others are, though nobody reads."""
        self._answer.most_unread = sys.maxsize
        self._start()

    @property
    def is_computed(self) -> bool:
        """Whether there is nothing left to compute, though not all may have been read."""
        return self._finish_reason is not None or self._answer.is_over or self._answer.is_cancelled

    def step(self) -> None:
        """Compute a little more, of this answer and of those beside it. Raises what iterating does."""
        if not self.is_computed:
            try:
                self._tell(self._next_piece())
            except BaseException:
                self._end("cancelled")
                raise

    def cancel(self) -> None:
        """Stop soon, also in the middle of a long prompt. From any thread."""
        self._scheduler.cancel(self._answer)

    def close(self) -> None:
        """Stop now; what was computed stays in the cache for the next prompt."""
        self.cancel()
        self._end_unread(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lose(self, error: Exception) -> None:
        """End with an error, which whoever goes on iterating gets, and hold nothing of the model any more."""
        self._end_unread(error)

    def _end_unread(self, lost: Exception | None) -> None:
        """End it unless a thread iterates, which will see by itself that it has been cancelled."""
        with self._ending:
            if self._reading.acquire(blocking=False):
                try:
                    if self._finish_reason is None:
                        self._lost = lost
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
