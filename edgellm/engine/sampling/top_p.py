"""Top-p, or nucleus sampling (Holtzman et al., 2019, arXiv:1904.09751).

Keep the most likely tokens until their probabilities reach p. Tokens are ordered by their logits, for probabilities tie
where logits do not.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class TopP(Step):
    def __init__(self, p: float) -> None:
        self._p = p

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_reaching(self._p)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return TopP(params.top_p)
