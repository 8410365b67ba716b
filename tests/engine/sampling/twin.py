"""Sampling as the papers say it, in float64, over all tokens: what the steps must agree with.

Candidates are two arrays, ids and logits. A token that must not come has a logit of minus infinity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from edgellm.params import SamplingParams

Pair = tuple[np.ndarray, np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def probabilities(logits: np.ndarray, params: SamplingParams, context: Sequence[int] = (), pieces=None) -> np.ndarray:
    """float64 [n_vocab], what every token's chance is; XTC without its dice: as if they had said yes."""
    ids, logits = np.arange(len(logits)), logits.astype(np.float64)
    for token_id, bias in (params.logit_bias or {}).items():
        logits[token_id] += bias
    for step in params.steps:
        ids, logits = globals()[step](ids, logits, params, list(context), pieces)
    found = np.zeros(max(ids) + 1 if len(ids) else 0)
    found[ids] = softmax(logits)
    return found


def penalties(ids, logits, p, context, pieces) -> Pair:
    recent = context if p.repeat_last_n < 0 else context[len(context) - min(len(context), p.repeat_last_n) :]
    logits = logits.copy()
    for token_id, count in Counter(recent).items():
        for i in np.flatnonzero(ids == token_id):
            logits[i] = logits[i] / p.repeat_penalty if logits[i] > 0 else logits[i] * p.repeat_penalty
            logits[i] -= p.presence_penalty + count * p.frequency_penalty
    return ids, logits


def dry(ids, logits, p, context, pieces) -> Pair:
    """By definition: for every earlier place, how many tokens before it are those at the end."""
    text = context if p.dry_penalty_last_n < 0 else context[-p.dry_penalty_last_n :] if p.dry_penalty_last_n else []
    whole = b"".join(pieces(token_id) for token_id in context)
    ends = np.cumsum([len(pieces(token_id)) for token_id in context])
    breakers = [text.encode() for text in p.dry_sequence_breakers]
    last_break = max((whole.rfind(b) + len(b) for b in breakers if b in whole), default=0)
    limit = int((np.concatenate([[0], ends])[:-1] >= last_break).sum()) if len(context) else 0
    longest: dict[int, int] = {}
    for place in range(1, len(text)):
        n = 0
        while n < min(limit, place) and text[place - 1 - n] == text[len(text) - 1 - n]:
            n += 1
        if n >= p.dry_allowed_length:
            longest[text[place]] = max(n, longest.get(text[place], 0))
    logits = logits.copy()
    for token_id, n in longest.items():
        logits[ids == token_id] -= p.dry_multiplier * p.dry_base ** (n - p.dry_allowed_length)
    return ids, logits


def top_n_sigma(ids, logits, p, context, pieces) -> Pair:
    kept = logits >= logits.max() - p.top_n_sigma * logits[logits > -np.inf].std()
    return ids[kept], logits[kept]


def _first(order, n, ids, logits) -> Pair:
    return ids[order[:n]], logits[order[:n]]


def _descending(ids, logits) -> np.ndarray:
    return np.argsort(-logits, kind="stable")


def top_k(ids, logits, p, context, pieces) -> Pair:
    return _first(_descending(ids, logits), p.top_k, ids, logits)


def top_p(ids, logits, p, context, pieces) -> Pair:
    order = _descending(ids, logits)
    return _first(order, _n_reaching(softmax(logits)[order], p.top_p), ids, logits)


def typ_p(ids, logits, p, context, pieces) -> Pair:
    probability = softmax(logits)
    entropy = sum(-x * math.log(x) for x in probability if x > 0)
    oddness = [abs(-math.log(x) - entropy) if x > 0 else math.inf for x in probability]
    order = np.argsort(oddness, kind="stable")
    return _first(order, _n_reaching(probability[order], p.typical_p), ids, logits)


def _n_reaching(probabilities: np.ndarray, p: float) -> int:
    """One by one until they reach p."""
    total = 0.0
    for n, x in enumerate(probabilities, 1):
        total += x
        if total >= p:
            return n
    return len(probabilities)


def min_p(ids, logits, p, context, pieces) -> Pair:
    probability = softmax(logits)
    kept = probability >= p.min_p * probability.max()
    return ids[kept], logits[kept]


def xtc(ids, logits, p, context, pieces) -> Pair:
    probability = softmax(logits)
    top = [i for i in _descending(ids, logits) if probability[i] >= p.xtc_threshold]
    if p.xtc_threshold > 0.5 or len(top) < 2:
        return ids, logits
    kept = np.isin(np.arange(len(ids)), top[:-1], invert=True)
    return ids[kept], logits[kept]


def temperature(ids, logits, p, context, pieces) -> Pair:
    t = p.temperature
    if p.dynatemp_range:
        if len(ids) == 1:
            return ids, logits
        probability = softmax(logits)
        entropy = sum(-x * math.log(x) for x in probability if x > 0)
        low, high = max(0, t - p.dynatemp_range), t + p.dynatemp_range
        t = low + (high - low) * (entropy / math.log(len(ids))) ** p.dynatemp_exponent
    if t == 0:
        return _first(_descending(ids, logits), 1, ids, logits)
    return ids, logits / t


def mirostat(ids, logits, p, context, pieces, mu: float | None = None) -> Pair:
    mu = 2 * p.mirostat_tau if mu is None else mu
    probability = softmax(logits)
    with np.errstate(divide="ignore"):
        kept = (-np.log2(probability) <= mu) | (probability == probability.max())
    return ids[kept], logits[kept]


def adaptive_p(ids, logits, p, context, pieces, mean: float | None = None) -> Pair:
    mean = p.adaptive_target if mean is None else mean
    probability = softmax(logits)
    distance = np.abs(probability - np.clip(2 * p.adaptive_target - mean, 0, 1)) / 0.3
    return ids, np.where(probability > 0, 5 - 10 * distance**2 / (1 + distance), -np.inf)
