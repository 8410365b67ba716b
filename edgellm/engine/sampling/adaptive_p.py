"""Adaptive-p (MrJackSpade, 2025, github.com/ggml-org/llama.cpp/pull/17927): draw tokens of about a given probability.

The probabilities p of the tokens drawn so far have a mean m, in which each earlier token counts `adaptive_decay`
times as much as the one after it. The aim is a = 2 * target - m, within 0 to 1, and a token's new logit is
5 - 10 d² / (1 + d), where d = |p - a| / 0.3.

Best after a little of min-p alone, which keeps out what should not come at all.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.groups import Drawn
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class AdaptiveP(Step):
    """state: the probabilities of tokens drawn, added up by what each counts, and the sum of what they count."""

    def __init__(self, target: float, decay: float) -> None:
        self._target, self._decay = target, decay
        self.state = (target / (1 - decay), 1 / (1 - decay))  # as if it had been met so far

    def apply(self, candidates: Candidates) -> None:
        total, count = self.state
        aim = min(1.0, max(0.0, 2 * self._target - total / count))
        self._probabilities = candidates.aim(aim)

    def drawn(self, drawn: Drawn) -> None:
        total, count = self.state
        probabilities = self._probabilities
        probability = drawn.share if probabilities is None else float(probabilities[drawn.position])
        self.state = (probability + self._decay * total, 1 + self._decay * count)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return AdaptiveP(params.adaptive_target, params.adaptive_decay)
