"""Locally typical sampling (Meister et al., 2022, arXiv:2202.00666).

The surprise of a token is -log p, and its mean is the entropy H. Keep the tokens of the smallest |-log p - H| until
their probabilities reach `typical_p`. The likeliest token may be left out.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step, Surroundings
from edgellm.params import SamplingParams

NARROW = 1 / 2  # nats, how far from H the surprise of tokens is that are tried first


class Typical(Step):
    def __init__(self, p: float) -> None:
        self._p = p

    def apply(self, candidates: Candidates) -> None:
        total, entropy = candidates.total(), candidates.entropy()
        # Of a whole vocabulary few tokens are wanted: those in a band around H, made wider until they are enough.
        width = NARROW if candidates.ids is None else math.inf
        while True:
            least = math.exp(-entropy - width) * total
            near = candidates.at_least(candidates.bound(least))
            p = candidates.weights_of(candidates.at(near)) / total
            with np.errstate(divide="ignore"):
                oddness = np.abs(-np.log(p) - entropy)
            if least > 0:
                inside = oddness <= width
                near, p, oddness = near[inside], p[inside], oddness[inside]
            if least == 0 or (len(p) and p.sum() >= self._p):
                break
            width *= 2
        order = np.argsort(oddness, kind="stable")
        n = int(np.searchsorted(np.cumsum(p[order]), self._p)) + 1
        candidates.keep(near[order[:n]])


def step(params: SamplingParams, around: Surroundings) -> Step:
    return Typical(params.typical_p)
