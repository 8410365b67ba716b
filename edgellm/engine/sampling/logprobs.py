"""Log-probabilities of tokens, by the model alone: before any step, as OpenAI's interface has them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgellm.engine.sampling.all_tokens import AllTokens
from edgellm.engine.sampling.groups import IN_NUMPY, Filter, GroupLoops
from edgellm.kernels.sampling_records import MOST_LIKELY


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
    """logits: float32 [n_vocab], as the model gave them. maxima, loops: see `AllTokens`."""
    of_all = AllTokens(logits, maxima, loops, is_own=False)
    log_total = of_all.largest + math.log(of_all.total(1.0))
    top: list[tuple[int, float]] = []
    if n_top:
        ids, likeliest = of_all.kept([Filter(MOST_LIKELY, n_top, 1.0)])
        top = [(top_id, logit - log_total) for top_id, logit in zip(ids.tolist(), likeliest.tolist(), strict=True)]
    return TokenLogprobs(token_id, float(logits[token_id]) - log_total, top)
