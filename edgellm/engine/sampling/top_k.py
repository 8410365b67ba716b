"""Top-k (Fan et al., 2018, arXiv:1805.04833): keep the k most likely tokens."""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class TopK(Step):
    def __init__(self, k: int) -> None:
        self._k = k

    def apply(self, candidates: Candidates) -> None:
        if self._k == 1:
            candidates.keep_likeliest()
        else:
            candidates.keep_most_likely(self._k)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return TopK(params.top_k)
