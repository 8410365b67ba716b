"""From logits to what is said about them, a row at a time: a row of a large vocabulary just fits into a cache.

Exponentials are float32 and their sums float64, so that a result is off by some 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.engine import Model
from edgellm.errors import FileProblem

Floats = NDArray[np.float64]
Row = NDArray[np.float32]  # [n_vocab]: the logits of the token after one

LARGEST_SPREAD = float(np.finfo(np.float32).max)


class Compared(NamedTuple):
    """A row of logits beside the base's.

    divergence:          Kullback-Leibler, of the base's probabilities from the model's, in nats.
    base_sum, own_sum:   ln of the sum of exp(logit), which makes logits log-probabilities.
    """

    divergence: float
    base_sum: float
    own_sum: float


def log_sum(row: Row) -> float:
    """ln of the sum of exp(logit): a token's log-probability is its logit less this."""
    largest = row.max()
    return float(largest) + log(np.exp(row - largest).sum(dtype=np.float64))


def compare(base: Row, own: Row) -> Compared:
    """The same as `log_sum` of both, and how they differ, with each exponential computed once."""
    base_largest, own_largest = base.max(), own.max()
    p, q = base - base_largest, own - own_largest
    difference = p - q
    np.exp(p, out=p)
    np.exp(q, out=q)
    p_sum, q_sum = p.sum(dtype=np.float64), q.sum(dtype=np.float64)
    difference *= p
    divergence = float(difference.sum(dtype=np.float64) / p_sum) - log(p_sum) + log(q_sum)
    return Compared(max(divergence, 0.0), float(base_largest) + log(p_sum), float(own_largest) + log(q_sum))


def first_scored(n_ctx: int) -> int:
    """The token of a window from which on the next one is scored: the first half is there to be read."""
    return n_ctx // 2


def scored_rows(model: Model, window: Sequence[int]) -> Iterator[Row]:
    """The logits that foresee the tokens of the second half of a window, of each token after `first_scored`.

    Raises FileProblem when they are no numbers, or too large to be compared.
    """
    for piece in model.logits_in_pieces(window[:-1], first_scored(len(window))):
        spread = float(piece.max()) - float(piece.min())
        if not spread <= LARGEST_SPREAD:
            raise FileProblem(f"{model.path}: its logits are no finite numbers; its weights may be damaged")
        yield from piece


def standard_error(samples: NDArray) -> float:
    """Of the mean of independent samples."""
    return float(np.std(samples) / sqrt(max(1, len(samples) - 1)))
