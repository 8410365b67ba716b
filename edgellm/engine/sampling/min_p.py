"""Min-p (Nguyen et al., 2024, arXiv:2407.01082): keep tokens at least p times as likely as the likeliest."""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class MinP(Step):
    def __init__(self, p: float) -> None:
        self._p = p

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_as_likely(self._p)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return MinP(params.min_p)
