"""Top-n-sigma (Tang et al., 2024, arXiv:2411.07641): keep logits from `largest - n * sigma` on.

sigma is the standard deviation of all logits that there are. A temperature changes nothing about what stays.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class TopNSigma(Step):
    def __init__(self, n: float) -> None:
        self._n = n

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_at_least(candidates.largest - self._n * _deviation(candidates.logits))


def _deviation(logits: np.ndarray) -> float:
    """Of all logits but minus infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        rest = logits - logits.mean()
        variance = float(np.square(rest, out=rest).mean())
    if not math.isfinite(variance):  # one is minus infinity, or they are too large for float32
        numbers = logits[logits > -math.inf].astype(np.float64)
        variance = float(numbers.var())
    return math.sqrt(variance)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return TopNSigma(params.top_n_sigma)
