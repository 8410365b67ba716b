"""Mirostat 2 (Basu et al., 2020, arXiv:2007.14966): keep the surprise of the text near `mirostat_tau` bits a token.

Tokens more surprising than μ, -log2(p) > μ, are left out; the likeliest stays. After the draw, whose surprise s is that
among those that stayed, μ becomes μ - η (s - τ). It begins with 2 τ.
"""

from __future__ import annotations

import math

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.groups import Drawn
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams

MOST_BITS = 1000.0  # of surprise: no probability of a float64 has more


class Mirostat(Step):
    """state: μ."""

    def __init__(self, tau: float, eta: float) -> None:
        self._tau, self._eta = tau, eta
        self.state = 2 * tau

    def apply(self, candidates: Candidates) -> None:
        candidates.keep_probable(2.0 ** -max(0.0, min(self.state, MOST_BITS)))

    def drawn(self, drawn: Drawn) -> None:
        self.state -= self._eta * (-math.log2(drawn.share) - self._tau)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Mirostat(params.mirostat_tau, params.mirostat_eta)
