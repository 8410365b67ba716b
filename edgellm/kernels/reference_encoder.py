"""The NumPy twins of what encoders have beside decoders (see `reference.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.kernels.reference import Floats, Ints


def add_segment(x: Floats, table: Floats, segments: Ints) -> Floats:
    """x [n_tokens, n_cols] + the row of table [2, n_cols] that segments [n_tokens] names."""
    return x + table[segments]


def text_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    lengths: Sequence[int],
    scale: float,
    window: int | None = None,
    ahead: int | None = None,
    slopes: Floats | None = None,
) -> Floats:
    """softmax(scale q k^T) v, each token looking at its own text alone: float32 [n_tokens, n_heads, value_dim].

    q:        [n_tokens, n_heads, key_dim]
    k, v:     [n_tokens, n_kv_heads, key_dim] and [..., value_dim]; query heads come in equal groups that share one
    lengths:  of the texts, one behind the other
    window:   positions a token looks back over, itself included; None is no limit
    ahead:    positions after its own that it sees: 0 is causal, None is no limit
    slopes:   [n_heads], what a score loses for each position of distance
    """
    out = np.zeros((*q.shape[:2], v.shape[2]), np.float32)
    group, first = q.shape[1] // k.shape[1], 0
    for length in lengths:
        rows = slice(first, first + length)
        first += length
        keys, values = (np.repeat(x[rows].astype(np.float64), group, axis=1) for x in (k, v))
        scores = np.einsum("thd,shd->hts", q[rows].astype(np.float64), keys) * scale
        back = np.subtract.outer(np.arange(length), np.arange(length))
        if slopes is not None:
            scores -= slopes[:, None, None] * np.abs(back)
        seen = (back < (length if window is None else window)) & (back >= -(length if ahead is None else ahead))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e300))
        out[rows] = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), values)
    return out
