"""Penalties for tokens that are among the last `repeat_last_n` of the text.

Repetition (Keskar et al., 2019, arXiv:1909.05858) divides positive logits and multiplies negative ones. Then, as OpenAI
has them, a token that is there c times loses `presence_penalty + c * frequency_penalty`.
"""

from __future__ import annotations

from edgellm.engine.sampling.candidates import MOST_LOST, Candidates
from edgellm.engine.sampling.groups import Penalty
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams


class Penalties(Step):
    def __init__(self, params: SamplingParams, around: Surroundings) -> None:
        presence, frequency = (
            max(-MOST_LOST, min(penalty, MOST_LOST)) for penalty in (params.presence_penalty, params.frequency_penalty)
        )
        self._penalty = Penalty(presence, frequency, params.repeat_penalty)
        self._last_n, self._context = params.repeat_last_n, around.context

    def apply(self, candidates: Candidates) -> None:
        recent = self._context.last(self._last_n)
        if len(recent):
            candidates.penalize(recent, self._penalty)


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Penalties(params, around)
