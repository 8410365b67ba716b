"""Top-n-sigma (Tang et al., 2024, arXiv:2411.07641): keep logits from `largest - n * sigma` on.

sigma is the standard deviation of all logits that there are. A temperature changes nothing about what stays.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class TopNSigma(Step):
    def __init__(self, n: float) -> None:
        self._n = n

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_sigmas(self._n)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return TopNSigma(params.top_n_sigma)
