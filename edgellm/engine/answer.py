"""A text in the making, as the scheduler sees it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.adapter_set import AdapterSet
from edgellm.engine.answer_plan import AnswerPlan
from edgellm.engine.answer_text import AnswerText, Shown
from edgellm.engine.request import Request
from edgellm.engine.sampling import NoTokenError, Sampler
from edgellm.engine.sampling.groups import IN_NUMPY, GroupLoops
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.engine.stats import GenerationStats
from edgellm.params import SamplingParams

if TYPE_CHECKING:
    from edgellm.engine.shifting import Shift
    from edgellm.engine.structure.constraint import Constraint
    from edgellm.text import Tokenizer

MOST_UNREAD = 8  # tokens of an answer that are computed along with others before somebody reads them


class Answer(Request):
    """A text in the making: every token that is chosen is the next one to be computed.

    It knows nothing of the Generation that people hold, so that one they drop ends at once.

    unread:       tokens and their texts that nobody has taken yet. While others are computed, this one goes on for a
                  few tokens.
    rest:         text that is left at the end.
    most_unread:  so many tokens.
    shift:        how the text goes on when the context is full; None ends it there. From the first shift on `tokens` is
                  what the model reads, and only its last ones are those of the whole text, which is what sampling,
                  grammars and budgets go by.
    tells_prompt: somebody wants to hear how much of the prompt is read; n_told: what was heard last.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        n_ctx: int,
        adapters: AdapterSet,
        plan: AnswerPlan,
        shift: Shift | None = None,
        loops: GroupLoops = IN_NUMPY,
    ) -> None:
        super().__init__(list(prompt), adapters=adapters)
        self._shift, self._whole, self._n_last = shift, self.tokens, 0
        self.unread: deque[Shown] = deque()
        self.rest = ""
        self.most_unread = MOST_UNREAD
        self.tells_prompt = False
        self.n_told = 0
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
            rule.begin(self._whole)
        never = tokenizer.ids_with_any(tuple(params.banned_strings))
        self._loops = loops
        self._sampler: Sampler | None = Sampler(params, tokenizer.token_bytes, never, rules, loops)
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
    def n_prompt_done(self) -> int:
        """Tokens of the prompt that are in the cache by now; all, once the answer has outgrown it."""
        if self.n_shifts:
            return self.stats.n_prompt_tokens
        sequence = self.sequence  # which another thread may take away
        return min(len(sequence) if sequence is not None else 0, self.stats.n_prompt_tokens)

    @property
    def has_progress(self) -> bool:
        """There is something to hear of the prompt."""
        return self.tells_prompt and self.n_prompt_done > self.n_told

    @property
    def is_ready(self) -> bool:
        return bool(self.unread) or self.has_progress or super().is_ready

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
        if position != len(self.tokens) - 1 or self.is_full or text is None or sampler is None:
            return  # a step that was interrupted has chosen what comes after it, or nobody wants it
        if self._first_at is None:
            self.stats.prompt_seconds = self._seconds()
        while True:
            state = sampler.state if text.takes_back else None
            try:
                token_id = sampler.choose(logits, self._written(), maxima, text.forbidden)
            except NoTokenError:
                if state is None or not text.allow_beginnings():
                    raise
                sampler.state = state
                continue
            if self._first_at is None:
                self.stats.first_token_seconds = self._seconds()
                self._first_at = time.perf_counter()
            if token_id in self._stop_ids:
                self._finish("stop", text)
                return
            n_top = self._params.logprobs
            logprobs = None if n_top is None else logprobs_of(token_id, logits, maxima, n_top, self._loops)
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
        if self.n_shifts:
            self._whole.append(token_id)
            self._n_last += 1
        constraint = self._constraint
        if constraint is not None:
            constraint.follow(self._whole)
        if text.stop_string is not None:
            self.stop_string = text.stop_string
            self._finish("stop", text)
        elif constraint is not None and constraint.is_complete:
            self._finish("stop", text)
        elif self.stats.n_generated_tokens == self._params.max_tokens:
            self._finish("length", text)
        elif len(self.tokens) > self._n_ctx:
            if self._shift is None:
                self._finish("context", text)
            self.is_full = self._shift is not None

    def _cut(self, n_tokens: int) -> None:
        """Take back the last tokens: others are to come in their place."""
        self.stats.n_generated_tokens -= n_tokens
        if self.n_shifts:
            del self._whole[len(self._whole) - n_tokens :]
            self._n_last -= n_tokens
            if self._n_last < 1:  # more than is read of the answer: what came before it has to be read again
                self.is_full = True
                return
        self._is_cut = True
        del self.tokens[len(self.tokens) - n_tokens :]

    def shift(self) -> None:
        assert self._shift is not None
        self.tokens, self._n_last = self._shift.read_of(self._whole)
        self.is_full = self._is_cut = False
        self.n_shifts += 1
        self.stats.n_shifts, self.stats.n_left_out_tokens = self.n_shifts, len(self._whole) - len(self.tokens)

    def _written(self) -> list[int]:
        """The whole text without the tokens of an adapter."""
        n_virtual = self.adapters.n_virtual
        return self._whole[n_virtual:] if n_virtual else self._whole

    def progressed(self) -> None:
        self.stats.n_reused_tokens = self.n_reused
        self.stats.n_draft_tokens, self.stats.n_accepted_tokens = self.n_guessed, self.n_right
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
