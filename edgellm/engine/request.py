"""What can be asked of a model: tokens of one text to be computed, and what becomes of their logits."""

from __future__ import annotations

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.kv_cache import Sequence


class Request:
    """A text, and how much of it is in the cache. The scheduler computes what is missing, step by step.

    tokens:        all that is known of the text.
    sequence:      its part of the cache; None before its turn has come, and while others needed the room.
    adapters:      what it is computed with beside the model.
    is_private:    whether it neither begins with what other texts left in the cache nor leaves anything there.
    n_reused:      tokens that it found there when it began.
    n_guessed:     tokens that were guessed and checked. n_right: those of them that came.
    is_full:       its context is full; it goes on when the oldest of its tokens have given way.
    n_shifts:      how often they had to.
    is_over:       nothing more is to be computed; error says why, where that is one.
    is_awaited:    somebody waits for it at this moment; others may be computed along, and lose their room first.
    is_cancelled:  nobody wants the rest. Any thread may set it, at any time.
    """

    def __init__(
        self,
        tokens: list[int],
        is_private: bool = False,
        sequence: Sequence | None = None,
        adapters: AdapterSet = NO_ADAPTERS,
    ) -> None:
        self.tokens = tokens
        self.sequence = sequence
        self.adapters = adapters if sequence is None else sequence.adapters
        self.is_private = is_private
        self.n_reused = 0
        self.n_guessed = self.n_right = 0
        self.is_full = False
        self.n_shifts = 0
        self.is_over = False
        self.is_cancelled = False
        self.error: Exception | None = None
        self.is_awaited = False
        # What the scheduler notes of it.
        self.owner: int | None = None  # the thread that submitted it while it had the model for itself
        self.arrival = 0  # its place in the order of arrival
        self.last_step = 0  # in which it took part
        self.n_over_when_preempted = -1  # so many had ended when others took its room; -1: they did not

    @property
    def n_cached(self) -> int:
        sequence = self.sequence
        return len(sequence.tokens) if sequence is not None else 0

    @property
    def end(self) -> int:
        """Tokens before this position may be computed now."""
        return len(self.tokens)

    @property
    def n_pending(self) -> int:
        """Tokens that may be computed now."""
        return 0 if self.is_over or self.is_cancelled else max(0, self.end - self.n_cached)

    @property
    def is_ready(self) -> bool:
        """Whether who waits for it can go on."""
        return self.is_over or self.is_cancelled

    @property
    def first_wanted(self) -> int:
        """Logits are wanted of the tokens from this position on."""
        raise NotImplementedError

    @property
    def most_guesses(self) -> int:
        """Tokens that may be guessed to come next: they are computed along, and count if they come."""
        return 0

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        """The scores of what comes after the token at a position: views, valid until this returns.

        logits:  float32 [n_vocab]. maxima: the largest of every MAXIMA_GROUP of them.
        """
        raise NotImplementedError

    def progressed(self) -> None:
        """Called when more of its tokens are in the cache."""

    def shift(self) -> None:
        """Leave out the oldest tokens of a text that is full; what stays will be computed as any prompt is."""
        raise NotImplementedError


class Scores(Request):
    """Logits of given tokens, as many rows at a time as the reader has room for."""

    def __init__(self, tokens: list[int], sequence: Sequence | None = None, adapters: AdapterSet = NO_ADAPTERS) -> None:
        super().__init__(tokens, is_private=True, sequence=sequence, adapters=adapters)
        self._first = self._end = self.n_cached
        self._rows = np.empty((0, 0), np.float32)

    def ask(self, end: int, rows: np.ndarray) -> None:
        """Compute the tokens before `end`; the logits of the last of them go to `rows`, float32 [n, n_vocab]."""
        self._rows, self._first, self._end = rows, end - len(rows), end

    @property
    def end(self) -> int:
        return self._end

    @property
    def is_ready(self) -> bool:
        return super().is_ready or self.n_cached >= self._end

    @property
    def first_wanted(self) -> int:
        return self._first

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        self._rows[position - self._first] = logits
