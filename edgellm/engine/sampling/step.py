"""What a step is, and what it may know beside the candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgellm.engine.sampling.candidates import Candidates, Dice
from edgellm.engine.sampling.groups import Drawn


class Context:
    """The ids of one text so far, prompt included, as an array that grows with it.

    Between two tokens a text gets longer, or is cut back (see `engine/answer_text.py`); what is left of it stays.
    """

    def __init__(self) -> None:
        self._ids = np.empty(256, np.int64)
        self._n_known = 0
        self._source: Sequence[int] = ()

    def follow(self, ids: Sequence[int]) -> None:
        """The text as it is now. Nothing is copied until a step asks for it."""
        self._source = ids
        self._n_known = min(self._n_known, len(ids))

    def __len__(self) -> int:
        return len(self._source)

    def last(self, n: int = -1) -> np.ndarray:
        """Its last n ids, or as many as there are; -1 is all of them. int64, to be read only."""
        length = len(self._source)
        if length > len(self._ids):
            ids = np.empty(2 * length, np.int64)
            ids[: self._n_known] = self._ids[: self._n_known]
            self._ids = ids
        if self._n_known < length:
            self._ids[self._n_known : length] = self._source[self._n_known :]
            self._n_known = length
        return self._ids[0 if n < 0 else max(0, length - n) : length]


class Surroundings(NamedTuple):
    """What steps share: the text so far, the dice, and what tokens stand for, as bytes."""

    context: Context
    dice: Dice
    token_bytes: Callable[[int], bytes]


class Step:
    """Changes the candidates of one token.

    state:  what it remembers of tokens that were drawn. Whoever takes tokens back gives the earlier value back.
    """

    state: Any = None

    def apply(self, candidates: Candidates) -> None:
        raise NotImplementedError

    def drawn(self, drawn: Drawn) -> None:
        """A candidate was drawn. Only for the last step: others would know it by another position."""
