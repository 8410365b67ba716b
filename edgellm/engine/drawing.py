"""Answers that are drawn as the model gives them, many at once: every next token by its probability alone.

What learns from its own answers needs just these, with the token that ended them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.engine.request import Request
from edgellm.engine.scheduler import Scheduler


class Drawn(Request):
    """An answer to a prompt, as it is drawn.

    n_most:    tokens that it may have. stop_ids: tokens that end it, and are a part of it.
    seed:      the same seed, prompt and model give the same answer, whatever else is computed beside.
    is_enough: asked at every token; True ends the answer there.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        n_most: int,
        stop_ids: Collection[int],
        seed: Sequence[int],
        adapters: AdapterSet = NO_ADAPTERS,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        self._n_virtual = adapters.n_virtual
        super().__init__([0] * self._n_virtual + list(prompt), adapters=adapters)
        self._n_prompt, self._n_most, self._stop_ids = len(self.tokens), n_most, stop_ids
        self._is_enough = is_enough
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))

    @property
    def answer(self) -> list[int]:
        """The tokens so far."""
        return self.tokens[self._n_prompt :]

    @property
    def written(self) -> list[int]:
        """The prompt and the answer, without tokens of an adapter."""
        return self.tokens[self._n_virtual :]

    @property
    def has_ended(self) -> bool:
        """Whether the model ended it, rather than n_most."""
        return self.tokens[-1] in self._stop_ids and len(self.tokens) > self._n_prompt

    @property
    def first_wanted(self) -> int:
        return len(self.tokens) - 1

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        if position != len(self.tokens) - 1:
            return  # it lost its room in the cache, and is computed again
        weights = np.exp(logits.astype(np.float64) - float(maxima.max()))
        sums = np.cumsum(weights)
        chosen = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        self.tokens.append(min(chosen, len(sums) - 1))
        is_long = len(self.tokens) >= self._n_prompt + self._n_most
        self.is_over = self.has_ended or is_long or self._is_enough()


def draw(scheduler: Scheduler, requests: Sequence[Drawn]) -> None:
    """Draw all of them, in batches."""
    for request in requests:
        scheduler.submit(request)
    try:
        for request in requests:
            scheduler.wait(request)
    finally:
        for request in requests:
            scheduler.retire(request)
