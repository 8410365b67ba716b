"""Choosing the next token from its logits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.reference import maxima as maxima_of
from edgellm.params import SamplingParams


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

        In this order: repetition penalty, top-k, top-p, min-p, temperature, draw. What is not a number comes last,
        and infinities count as the largest and smallest number.
        """
        p = self.params
        if p.repeat_penalty != 1 and p.repeat_last_n:
            logits, maxima = _penalize(logits, context[-p.repeat_last_n :], p.repeat_penalty), None
        if maxima is None:
            maxima = maxima_of(logits)
        if not math.isfinite(maxima.max()):
            limits = np.finfo(np.float32)
            logits = np.nan_to_num(logits, nan=limits.min, posinf=limits.max, neginf=limits.min)
            maxima = maxima_of(logits)
        if p.temperature == 0 or p.top_k == 1:
            return _likeliest(logits, maxima)
        ids = self._candidates(logits, maxima)
        cumulative = np.cumsum(_softmax(logits[ids].astype(np.float64), p.temperature))
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])

    def _candidates(self, logits: np.ndarray, maxima: np.ndarray) -> np.ndarray:
        """The ids that top-k, top-p and min-p leave."""
        p = self.params
        if p.top_k:
            ids = _most_likely(logits, maxima, p.top_k)
            probabilities = _softmax(logits[ids].astype(np.float64))
        else:
            weights = np.nan_to_num(np.exp(logits - maxima.max()), copy=False)
            ids, probabilities = _reaching(weights / np.float32(weights.sum(dtype=np.float64)), p.top_p)
        if p.top_p < 1:
            n_kept = int(np.searchsorted(np.cumsum(probabilities), p.top_p)) + 1
            ids, probabilities = ids[:n_kept], probabilities[:n_kept]
        return ids[probabilities >= p.min_p * probabilities.max()] if p.min_p > 0 else ids


def _penalize(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive and multiply negative logits of recent tokens (Keskar et al., 2019)."""
    ids = np.unique(np.asarray(recent, np.int64))
    logits = logits.copy()
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return logits


def _likeliest(logits: np.ndarray, maxima: np.ndarray) -> int:
    """The id of the largest logit; among equal ones the smallest."""
    group = int(np.argmax(maxima))
    start = group * MAXIMA_GROUP
    return start + int(np.argmax(logits[start : start + MAXIMA_GROUP] == maxima[group]))


def _most_likely(logits: np.ndarray, maxima: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits, the largest first; among equal ones the smaller ids."""
    if len(maxima) <= k:
        candidates = np.flatnonzero(~np.isnan(logits))
    else:
        # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
        bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        groups = np.flatnonzero(maxima >= bound)
        candidates = (groups[:, None] * MAXIMA_GROUP + np.arange(MAXIMA_GROUP)).reshape(-1)
        candidates = candidates[: np.searchsorted(candidates, len(logits))]  # the last group may be smaller
        candidates = candidates[logits[candidates] >= bound]
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


def _reaching(probabilities: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities of at least as many of the likeliest tokens as together reach p; unordered for p = 1."""
    n, k, maxima = len(probabilities), 64, maxima_of(probabilities)
    while p < 1 and k < n:
        ids = _most_likely(probabilities, maxima, k)
        if probabilities[ids].sum(dtype=np.float64) > p:
            return ids, probabilities[ids]
        k *= 8
    ids = np.arange(n) if p == 1 else np.argsort(-probabilities, kind="stable")
    return ids, probabilities[ids]


def _softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities; what is not a number has none."""
    with np.errstate(over="ignore"):  # of a temperature near 0
        weights = np.exp((scores - np.nanmax(scores)) / temperature)
    weights[np.isnan(weights)] = 0
    return weights / weights.sum()
