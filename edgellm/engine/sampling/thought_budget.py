"""A thought of so many tokens at most: then its end is written for the model, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step


class ThoughtBudget(Step):
    """
    n:      tokens of a thought.
    start:  the tokens of the mark that begins one; none where the prompt has.
    end:    the tokens of the mark that ends it.
    """

    def __init__(self, n: int, start: Sequence[int], end: Sequence[int]) -> None:
        self._n, self._start, self._end = n, list(start), list(end)
        self._tokens: Sequence[int] = ()
        self._n_prompt = 0

    def copy(self) -> ThoughtBudget:
        return ThoughtBudget(self._n, self._start, self._end)

    def begin(self, tokens: Sequence[int]) -> None:
        """tokens: the whole text, as it grows."""
        self._tokens, self._n_prompt = tokens, len(tokens)

    def apply(self, candidates: Candidates) -> None:
        first = self._n_prompt + len(self._start)
        n_thought = len(self._tokens) - first
        # It may have been over long ago, so the oldest tokens are what is looked at: as many as a thought may have.
        if n_thought < self._n or n_thought > self._n + len(self._end):
            return
        thought = list(self._tokens[first:])
        if self._start and self._start != list(self._tokens[self._n_prompt : first]):
            return
        if _holds(thought[: self._n + len(self._end) - 1], self._end) or _holds(thought, self._end):
            return
        n_written = next(k for k in range(len(self._end), -1, -1) if k == 0 or thought[-k:] == self._end[:k])
        wanted = self._end[n_written]
        ids = np.arange(len(candidates)) if candidates.ids is None else candidates.ids
        if (place := np.flatnonzero(ids == wanted)).size:
            candidates.keep(place)


def _holds(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))
