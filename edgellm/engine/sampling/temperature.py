"""Temperature: softmax(logits / T). Below 1, likely tokens become likelier; above, all become more alike.

Dynamic temperature (Zhu et al., 2023, arXiv:2309.02772) lets the entropy H of n candidates choose it:
T = low + (high - low) * (H / log n) ** exponent, from `temperature - dynatemp_range` to `temperature + dynatemp_range`.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class Temperature(Step):
    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def apply(self, candidates: Candidates) -> None:
        if self._temperature == 0:
            candidates.keep_likeliest()
        else:
            candidates.divide(self._temperature)


class DynamicTemperature(Step):
    def __init__(self, temperature: float, range_: float, exponent: float) -> None:
        self._low, self._high = max(0.0, temperature - range_), temperature + range_
        self._exponent = exponent

    def apply(self, candidates: Candidates) -> None:
        candidates.divide_by_evenness(self._low, self._high, self._exponent)


def is_greedy(step: Step) -> bool:
    """Whether a step leaves the likeliest token alone."""
    return isinstance(step, Temperature) and step._temperature == 0


def step(params: SamplingParams, around: Surroundings) -> Step:
    p = params
    if p.dynatemp_range:
        return DynamicTemperature(p.temperature, p.dynatemp_range, p.dynatemp_exponent)
    return Temperature(p.temperature)
