"""Choosing the next token from its logits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.params import SamplingParams

LARGEST = float(np.finfo(np.float32).max)


class Sampler:
    """Applies `SamplingParams`; its random numbers depend on the seed alone."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = random.Random(params.seed)

    def choose(self, logits: np.ndarray, context: Sequence[int], maxima: np.ndarray | None = None) -> int:
        """The next token id.

        logits:   float32 [n_vocab].
        context:  the ids so far, prompt included.
        maxima:   the largest of every MAXIMA_GROUP logits, where they are known already; a large vocabulary is looked
                  through by them, and never sorted or copied.

        In this order: repetition penalty, top-k, top-p, min-p, temperature, draw. The runner has seen to it that all
        logits are numbers; minus infinity is the logit of a token that must not come.
        """
        p = self.params
        if p.repeat_penalty != 1 and p.repeat_last_n:
            logits, maxima = _penalize(logits, context[-p.repeat_last_n :], p.repeat_penalty), None
        if maxima is None:
            maxima = np.maximum.reduceat(logits, np.arange(0, len(logits), MAXIMA_GROUP))
        if p.temperature == 0 or p.top_k == 1:
            return _likeliest(logits, maxima)
        ids = self._candidates(logits, maxima)
        cumulative = np.cumsum(_weights(logits[ids], maxima.max(), p.temperature))
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])

    def _candidates(self, logits: np.ndarray, maxima: np.ndarray) -> np.ndarray:
        """The ids that top-k, top-p and min-p leave.

        Tokens are ordered by their logits alone, whatever the filters: probabilities tie where logits do not.
        """
        p, largest = self.params, maxima.max()
        if p.top_k:
            ids = _most_likely(logits, maxima, p.top_k)
            if p.top_p < 1:
                weights = _weights(logits[ids], largest)
                ids = ids[: _n_reaching(weights, p.top_p * weights.sum())]
        elif p.top_p < 1:
            total = np.exp(logits - largest).sum(dtype=np.float64)
            ids = _reaching(logits, maxima, p.top_p * total)
        else:
            ids = np.arange(len(logits))
        if p.min_p > 0:
            ids = ids[logits[ids] >= np.float32(largest + math.log(p.min_p))]
        return ids


def _penalize(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive and multiply negative logits of recent tokens (Keskar et al., 2019), within float32."""
    ids = np.unique(np.asarray(recent, np.int64))
    before = logits[ids].astype(np.float64)
    after = np.where(before > 0, before / penalty, before * penalty)
    logits = logits.copy()
    logits[ids] = np.clip(after, -LARGEST, LARGEST)
    return logits


def _likeliest(logits: np.ndarray, maxima: np.ndarray) -> int:
    """The id of the largest logit; among equal ones the smallest."""
    group = int(np.argmax(maxima))
    start = group * MAXIMA_GROUP
    return start + int(np.argmax(logits[start : start + MAXIMA_GROUP]))


def _most_likely(logits: np.ndarray, maxima: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits, the largest first; among equal ones the smaller ids."""
    if len(maxima) <= k:
        candidates = np.arange(len(logits))
    else:
        # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
        bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        groups = np.flatnonzero(maxima >= bound)
        candidates = (groups[:, None] * MAXIMA_GROUP + np.arange(MAXIMA_GROUP)).reshape(-1)
        candidates = candidates[: np.searchsorted(candidates, len(logits))]  # the last group may be smaller
        candidates = candidates[logits[candidates] >= bound]
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


def _reaching(logits: np.ndarray, maxima: np.ndarray, enough: float) -> np.ndarray:
    """Ids of the largest logits, the largest first, until their weights together reach `enough`."""
    k, largest = 64, maxima.max()
    while True:
        ids = _most_likely(logits, maxima, k)
        n = _n_reaching(_weights(logits[ids], largest), enough)
        if n <= len(ids) or k >= len(logits):
            return ids[:n]
        k *= 8


def _n_reaching(weights: np.ndarray, enough: float) -> int:
    """How many of the first weights together reach `enough`; one more than there are when all do not."""
    return int(np.searchsorted(np.cumsum(weights), enough)) + 1


def _weights(logits: np.ndarray, largest: np.float32, temperature: float = 1.0) -> np.ndarray:
    """How likely tokens are beside the likeliest, whose weight is 1: float64."""
    with np.errstate(over="ignore"):  # of a temperature near 0
        return np.exp((logits.astype(np.float64) - float(largest)) / temperature)
