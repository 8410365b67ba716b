"""The gradients of attention in NumPy: the twin of `ops/attention_backward.py` (see `reference.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.kernels.reference import Floats


def attention_backward(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    lengths: Sequence[int],
    scale: float,
    window: int | None = None,
    ahead: int | None = 0,
    cap: float = 0.0,
    biases: Floats | None = None,
    sinks: Floats | None = None,
) -> tuple[Floats, Floats, Floats]:
    """The gradients of q, k and v, float32 in their shapes, from that of softmax(scale q k^T) v.

    q, dout:  [n_tokens, n_heads, head_dim]
    k, v:     [n_tokens, n_kv_heads, head_dim]; query heads come in equal groups that share a key-value head
    lengths:  of the documents, one behind the other; each token sees its own document only
    window:   positions a token looks back over, itself included; None is no limit
    ahead:    positions after its own that it sees: 0 is causal, None is no limit
    cap:      scores s become cap * tanh(s / cap) first; 0 leaves them
    biases:   [n_heads], what scores lose for each position of distance
    sinks:    [n_heads], a score of each head that takes its share of the softmax
    """
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
    for rows in _documents(lengths):
        wide_q, wide_dout = q[rows].astype(np.float64), dout[rows].astype(np.float64)
        wide_k, wide_v = (np.repeat(x[rows].astype(np.float64), group, axis=1) for x in (k, v))
        scores = np.einsum("thd,shd->hts", wide_q, wide_k) * scale
        slopes = 1.0
        if cap:
            shares = np.tanh(scores / cap)
            scores, slopes = cap * shares, 1 - shares**2
        p = _probabilities(scores, window, ahead, biases, sinks)
        dp = np.einsum("thd,shd->hts", wide_dout, wide_v)
        ds = scale * p * (dp - (p * dp).sum(-1, keepdims=True)) * slopes
        dq[rows] = np.einsum("hts,shd->thd", ds, wide_k)
        dk[rows] = _sum_groups(np.einsum("hts,thd->shd", ds, wide_q), group)
        dv[rows] = _sum_groups(np.einsum("hts,thd->shd", p, wide_dout), group)
    return dq.astype(np.float32), dk.astype(np.float32), dv.astype(np.float32)


def sum_heads(x: Floats, n_heads: int, n_parts: int) -> Floats:
    """float32 [n_tokens, n_heads * n_parts * head_dim] -> [n_tokens, n_heads * head_dim]: neighbours added in order."""
    parts = x.reshape(len(x), n_heads, n_parts, x.shape[1] // (n_heads * n_parts))
    total = parts[:, :, 0]
    for part in range(1, n_parts):
        total = total + parts[:, :, part]
    return total.reshape(len(x), x.shape[1] // n_parts)


def _documents(lengths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _probabilities(
    scores: Floats, window: int | None, ahead: int | None, biases: Floats | None, sinks: Floats | None
) -> Floats:
    """The softmax of [n_heads, n_tokens, n_tokens] over what each token sees."""
    n_tokens = scores.shape[-1]
    back = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    seen = np.ones_like(back, bool)
    if window is not None:
        seen &= back < window
    if ahead is not None:
        seen &= back >= -ahead
    if biases is not None:
        scores = scores - np.abs(back) * biases.astype(np.float64)[:, None, None]
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(np.float64)[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e300))
    return (weights / weights.sum(-1, keepdims=True))[..., :n_tokens]


def _sum_groups(x: Floats, group: int) -> Floats:
    """[n_tokens, n_heads, head_dim] -> [n_tokens, n_kv_heads, head_dim]"""
    n_tokens, n_heads, head_dim = x.shape
    return x.reshape(n_tokens, n_heads // group, group, head_dim).sum(2)
