"""Penalties for tokens that are among the last `repeat_last_n` of the text.

Repetition (Keskar et al., 2019, arXiv:1909.05858) divides positive logits and multiplies negative ones. Then, as OpenAI
has them, a token that is there c times loses `presence_penalty + c * frequency_penalty`.
"""

from __future__ import annotations

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class Penalties(Step):
    def __init__(self, params: SamplingParams, around: Surroundings) -> None:
        self._params, self._context = params, around.context

    def apply(self, candidates: Candidates) -> None:
        p, recent = self._params, self._context.last(self._params.repeat_last_n)
        if not len(recent):
            return
        ids, counts = _counted(recent)

        def penalized(before: np.ndarray, places: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                after = before
                if p.repeat_penalty != 1:
                    after = np.where(before > 0, before / p.repeat_penalty, before * p.repeat_penalty)
                if p.presence_penalty or p.frequency_penalty:
                    after = after - p.presence_penalty - counts[places] * p.frequency_penalty
                return after

        candidates.change(ids, penalized)


def _counted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different ids in rising order, and how often each is there, float64. `np.unique` takes far longer."""
    ids = np.sort(ids)
    (last,) = (ids[1:] != ids[:-1]).nonzero()
    borders = np.empty(len(last) + 2)
    borders[0], borders[1:-1], borders[-1] = -1, last, len(ids) - 1
    return ids[borders[1:].astype(np.int64)], borders[1:] - borders[:-1]


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Penalties(params, around)
