"""Locally typical sampling (Meister et al., 2022, arXiv:2202.00666).

The surprise of a token is -log p, and its mean is the entropy H. Keep the tokens of the smallest |-log p - H| until
their probabilities reach `typical_p`. The likeliest token may be left out.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class Typical(Step):
    def __init__(self, p: float) -> None:
        self._p = p

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_typical(self._p)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Typical(params.typical_p)
