"""XTC, "exclude top choices" (p-e-w, 2024, github.com/oobabooga/text-generation-webui/pull/6335).

With a chance of `xtc_probability`, of the tokens whose probability is at least `xtc_threshold` only the least likely
stays. So when there are several good ways to go on, one of the less obvious is taken.
"""

from __future__ import annotations

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.groups import distance
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams

MOST_THRESHOLD = 0.5  # two tokens cannot have more


class ExcludeTopChoices(Step):
    def __init__(self, probability: float, threshold: float, around: Surroundings) -> None:
        self._probability, self._threshold = probability, threshold
        self._dice = around.dice

    def apply(self, candidates: Candidates) -> None:
        if self._threshold > MOST_THRESHOLD or len(candidates) < 2 or self._dice.roll() >= self._probability:
            return
        below = distance(self._threshold * candidates.total(), candidates.temperature)
        top, logits = candidates.at_least(candidates.largest - below)
        if len(top) > 1:
            least = len(top) - 1 - int(np.argmin(logits[::-1]))  # of equal ones the last
            candidates.forbid_at(top[np.arange(len(top)) != least])


def step(params: SamplingParams, around: Surroundings) -> Step:
    return ExcludeTopChoices(params.xtc_probability, params.xtc_threshold, around)
