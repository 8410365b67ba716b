"""A thought of so many tokens at most: then its end is written for the model, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step

MOST_LATE = 16  # tokens that the end of a thought may have to wait for
LONGEST_MARK = 64  # tokens


class ThoughtBudget(Step):
    """Follows an answer from its beginning.

    n:           tokens of a thought.
    start:       the mark that begins one, as bytes; none where the prompt has.
    end:         the tokens of the mark that ends it.
    name_bytes:  what a token is, as bytes, control tokens by their names.
    """

    def __init__(self, n: int, start: bytes, end: Sequence[int], name_bytes: Callable[[int], bytes]) -> None:
        self._n, self._start, self._end, self._name_bytes = n, start, list(end), name_bytes
        self._tokens: Sequence[int] = ()
        self._n_prompt = 0

    def copy(self) -> ThoughtBudget:
        return ThoughtBudget(self._n, self._start, self._end, self._name_bytes)

    def begin(self, tokens: Sequence[int]) -> None:
        """tokens: the whole text, as it grows."""
        self._tokens, self._n_prompt = tokens, len(tokens)

    def apply(self, candidates: Candidates) -> None:
        n_answer = len(self._tokens) - self._n_prompt
        if not self._n <= n_answer <= self._n + LONGEST_MARK + len(self._end) + MOST_LATE:
            return
        answer = list(self._tokens[self._n_prompt :])
        first = self._first_of_thought(answer)
        if first is None or len(answer) - first < self._n or self._is_over(answer[first:]):
            return
        n_written = next(k for k in range(len(self._end), -1, -1) if k == 0 or answer[-k:] == self._end[:k])
        wanted = self._end[n_written]
        place = np.array([wanted]) if candidates.ids is None else np.flatnonzero(candidates.ids == wanted)
        if len(place) and candidates.logits[place[0]] > -math.inf:  # not so in the middle of a character
            candidates.keep(place)

    def _first_of_thought(self, answer: list[int]) -> int | None:
        """The number of tokens before the thought; None when there is none."""
        text = b""
        for n, token_id in enumerate([*answer[:LONGEST_MARK], None]):
            if text.lstrip().startswith(self._start):
                return n
            if token_id is not None:
                text += self._name_bytes(token_id)
        return None

    def _is_over(self, thought: list[int]) -> bool:
        end = b"".join(map(self._name_bytes, self._end))
        return end in b"".join(map(self._name_bytes, thought))
