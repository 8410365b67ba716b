"""Log-probabilities of tokens, by the model alone: before any step, as OpenAI's interface has them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.groups import IN_NUMPY, GroupLoops


class TokenLogprobs(NamedTuple):
    """A token of an answer, and what else the model would have said there.

    logprob:  natural logarithm of its probability.
    top:      the likeliest tokens, the likeliest first: pairs of id and logprob. The token may be one of them.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


def logprobs_of(
    token_id: int, logits: np.ndarray, maxima: np.ndarray | None, n_top: int, loops: GroupLoops = IN_NUMPY
) -> TokenLogprobs:
    """logits: float32 [n_vocab], as the model gave them. maxima, loops: see `Candidates`."""
    candidates = Candidates(logits, maxima, loops)
    log_total = candidates.largest + math.log(candidates.total())
    top: list[tuple[int, float]] = []
    if n_top:
        candidates.keep_most_likely(n_top)
        ids = candidates.ids
        assert ids is not None
        pairs = zip(ids.tolist(), candidates.logits.tolist(), strict=True)
        top = [(top_id, logit - log_total) for top_id, logit in pairs]
    return TokenLogprobs(token_id, float(logits[token_id]) - log_total, top)
