"""Choosing the next token from its logits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from edgellm.params import SamplingParams


class Sampler:
    """Applies `SamplingParams`; its random numbers depend on the seed alone."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = random.Random(params.seed)

    def choose(self, logits: np.ndarray, context: Sequence[int]) -> int:
        """The next token id. logits: float32 [n_vocab]; context: the ids so far, prompt included.

        In this order: repetition penalty, top-k, top-p, min-p, temperature, draw. What is not a number comes last,
        and infinities count as the largest and smallest number.
        """
        p = self.params
        if p.repeat_penalty != 1 and p.repeat_last_n:
            logits = _penalize(logits, context[-p.repeat_last_n :], p.repeat_penalty)
        if not math.isfinite(logits.max()):
            limits = np.finfo(np.float32)
            logits = np.nan_to_num(logits, nan=limits.min, posinf=limits.max, neginf=limits.min)
        if p.temperature == 0 or p.top_k == 1:
            return int(np.argmax(logits))
        ids = _most_likely(logits, p.top_k)
        scores = logits[ids].astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        ids, scores = ids[order], scores[order]
        probabilities = _softmax(scores)
        if p.top_p < 1:
            n_kept = int(np.searchsorted(np.cumsum(probabilities), p.top_p)) + 1
            ids, scores, probabilities = ids[:n_kept], scores[:n_kept], probabilities[:n_kept]
        if p.min_p > 0:
            kept = probabilities >= p.min_p * probabilities[0]
            ids, scores = ids[kept], scores[kept]
        cumulative = np.cumsum(_softmax(scores / p.temperature))
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])


def _penalize(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive and multiply negative logits of recent tokens (Keskar et al., 2019)."""
    ids = np.unique(np.asarray(recent, np.int64))
    logits = logits.copy()
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return logits


def _most_likely(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits (all for k = 0), unordered; a tie for the last place goes to the smaller id."""
    n = len(logits)
    if k == 0 or k >= n:
        return np.arange(n)
    # The k-th largest of many partial maxima is a lower bound that leaves few candidates: no sort of the vocabulary.
    width = max(1, min(n // (4 * k), 512))
    maxima = logits[: n // width * width].reshape(-1, width).max(axis=1)
    if len(maxima) > k:
        bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        candidates = np.flatnonzero(logits >= bound)
    else:
        candidates = np.arange(n)
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
