"""A whole vocabulary of candidates. Nothing of it is sorted, and nothing copied.

The largest logit of every group of 64, which the program that made the logits has found, tells where to look. What a
grammar forbids are bits, a word for each group. Other logits are written over the model's, which are given back after
the choice: to copy a million bytes takes longer than all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgellm.engine.sampling.groups import (
    Before,
    Drawn,
    Filter,
    GroupLoops,
    Kept,
    Penalty,
    Row,
    Weights,
    n_groups_of,
    rows_of,
)
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import WITHIN


class AllTokens:
    """Logits of all tokens in the order of their ids, minus infinity for those that must not come."""

    def __init__(
        self, logits: np.ndarray, maxima: np.ndarray | None, loops: GroupLoops, is_own: bool, is_lent: bool = False
    ) -> None:
        """logits: [n]. maxima: the largest of every MAXIMA_GROUP, where they are known.

        is_own:   the logits may be written over for good.
        is_lent:  logits and maxima may be written over until `give_back`, where that can be done.
        """
        self._loops, self._is_own, self._is_lent = loops, is_own, is_lent
        self._has_own_maxima = maxima is None
        if maxima is None:
            maxima = loops.largest(logits, None, None)
        self._row = Row(logits, None, maxima)
        self._before: list[tuple[Row, Before]] = []  # what is to be given back
        self._largest: float | None = None

    def __len__(self) -> int:
        return len(self._row.logits)

    @property
    def maxima(self) -> np.ndarray:
        """The largest of every MAXIMA_GROUP of the tokens that may come; minus infinity where none of them may."""
        return self._row.maxima

    @property
    def largest(self) -> float:
        """The largest logit."""
        if self._largest is None:
            maxima = self._row.maxima
            self._largest = float(maxima[maxima.argmax()])
        return self._largest

    def logits(self) -> np.ndarray:
        """All of them, [n], to be read only; slow where a grammar forbids some."""
        logits, words, _ = self._row
        if words is None:
            return logits
        return rows_of(logits, words, np.arange(n_groups_of(logits))).reshape(-1)[: len(self)]

    # --- where they are -----------------------------------------------------------------------------------

    def at_least(self, bound: float) -> Kept:
        """Tokens whose logits are a bound or more, in rising order."""
        if self.largest == -math.inf or bound > self.largest:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self.kept([Filter(WITHIN, self.largest - bound, 1.0)])

    def kept(self, filters: Sequence[Filter]) -> Kept:
        """What filters leave, the first of all tokens, every other one of what those before have left."""
        return self._loops.kept(self._row, filters)

    def drawn(self, filters: Sequence[Filter], temperature: float, number: float) -> Drawn | None:
        """The token that a number from 0 to below 1 falls on, of those that filters leave; None where none are."""
        return self._loops.drawn(self._row, filters, temperature, number)

    def likeliest(self) -> int:
        """The position of the largest logit; among equal ones the first."""
        logits, words, maxima = self._row
        if words is None:
            return likeliest(logits, maxima)
        group = int(maxima.argmax())
        return group * MAXIMA_GROUP + int(rows_of(logits, words, np.array([group])).argmax())

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The logits of tokens that may come, as a copy."""
        return self._row.logits[positions]

    # --- all of them together -----------------------------------------------------------------------------

    def weights(self, temperature: float) -> Weights:
        """How likely all are."""
        return self._loops.weights(self._row, temperature)

    def total(self, temperature: float) -> float:
        """The sum of all weights."""
        return self._loops.weights(self._row, temperature, with_products=False).total

    def spread(self) -> tuple[int, float]:
        """The number of tokens that may come, and the variance of their logits."""
        return self._loops.spread(self._row)

    # --- other logits -------------------------------------------------------------------------------------

    def allow(self, words: np.ndarray) -> None:
        """Only some tokens may come. words: uint64, a bit for each token; every word is a group of MAXIMA_GROUP."""
        logits, before, known = self._row
        if len(words) > len(known):
            words = words[: len(known)]
        if before is not None:
            words = before & words
        self._largest = None
        self._row, self._has_own_maxima = Row(logits, words, self._loops.largest(logits, words, known)), True

    def change(self, positions: np.ndarray, lost: np.ndarray, repeat: float, temperature: float) -> None:
        """Other logits at some positions, int64, each once; see `changed`."""
        self._make_own()
        self._note(self._loops.change(self._row, positions, lost, repeat, temperature))

    def penalize(self, ids: np.ndarray, penalty: Penalty, temperature: float) -> None:
        """Other logits for the tokens that are among some ids, int64."""
        self._make_own()
        self._note(self._loops.penalize(self._row, ids, penalty, temperature))

    def _note(self, before: Before) -> None:
        if self._is_lent:
            self._before.append((self._row, before))

    def _make_own(self) -> None:
        """From here on, logits and maxima may be written over."""
        self._largest = None
        logits, words, maxima = self._row
        if self._is_lent and not (logits.flags.writeable and maxima.flags.writeable):
            self._is_lent = False
        if not self._is_lent and not (self._is_own and self._has_own_maxima):
            self._row = Row(logits if self._is_own else logits.copy(), words, maxima.copy())
            self._is_own = self._has_own_maxima = True

    def give_back(self) -> None:
        """Logits and maxima are again what they were when they were lent."""
        for row, before in reversed(self._before):
            before.put_back(row)
        self._before, self._is_lent = [], False


def likeliest(logits: np.ndarray, maxima: np.ndarray) -> int:
    """The position of the largest logit, [n]; among equal ones the first. maxima: the largest of every MAXIMA_GROUP."""
    group = int(maxima.argmax())
    return group * MAXIMA_GROUP + int(logits[group * MAXIMA_GROUP : (group + 1) * MAXIMA_GROUP].argmax())
