"""NumPy twins of the kernels of mixtures of experts (see `reference.py`).

A row of pairs is [n_tokens, n_used * n], the results of a token's experts side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.reference import Floats, Ints, Quantized, linear, linear_f32
from edgellm.quants import BlockFormat


def route(
    logits: Floats,
    bias: Floats | None,
    n_used: int,
    scoring: str = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    n_groups: int = 1,
    n_groups_used: int = 1,
    n_ranked: int = 1,
    scales: Floats | None = None,
) -> tuple[Ints, Floats]:
    """Numbers of experts [n_tokens, n_used], best first, and their weights, for logits [n_tokens, n_experts]."""
    x = logits.astype(np.float64)
    scores = {"softmax": _softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "logits": lambda x: x}[scoring](x)
    choice = scores if bias is None else scores + bias
    groups = choice.reshape(len(x), n_groups, -1)
    goodness = np.sort(groups, -1)[..., -n_ranked:].sum(-1)
    best = np.argsort(-goodness, -1, kind="stable")[:, :n_groups_used]
    kept = np.zeros(goodness.shape, bool)
    np.put_along_axis(kept, best, True, -1)
    choice = np.where(kept[..., None], groups, -np.inf).reshape(x.shape)
    chosen = np.argsort(-choice, -1, kind="stable")[:, :n_used]
    weights = np.take_along_axis(scores, chosen, -1)
    if scoring == "logits":
        weights = _softmax(weights)
    if normalize:
        weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-20)
    by = 1.0 if scales is None else scales[chosen].astype(np.float64)
    return chosen, (weights * scale * by).astype(np.float32)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def experts(weights: NDArray[np.uint8], fmt: BlockFormat, x: Quantized, chosen: Ints) -> Floats:
    """W x for weights uint8 [n_experts, n_rows, row_bytes] of the experts [n_tokens, n_used] that each token has.

    x:  a row for every token, or one for each of its experts.
    """
    rows = _rows_of_pairs(len(x.q), chosen)
    pairs = [linear(weights[e], fmt, _row_of(x, row)) for e, row in zip(chosen.ravel(), rows, strict=True)]
    return np.concatenate(pairs).reshape(len(chosen), -1)


def _row_of(x: Quantized, row: int) -> Quantized:
    one = slice(row, row + 1)
    return Quantized(x.q[one], x.d[one], x.halves[one])


def experts_f32(weights: NDArray[np.uint8], fmt: BlockFormat, x: Floats, chosen: Ints) -> Floats:
    """The same for inputs that nobody has rounded."""
    x = x[_rows_of_pairs(len(x), chosen)]
    pairs = [linear_f32(weights[e], fmt, x[i : i + 1]) for i, e in enumerate(chosen.ravel())]
    return np.concatenate(pairs).reshape(len(chosen), -1)


def _rows_of_pairs(n_rows: int, chosen: Ints) -> Ints:
    """Which input each pair has."""
    return np.arange(chosen.size) // (chosen.size // n_rows)


def add_expert_bias(x: Floats, bias: Floats, chosen: Ints) -> Floats:
    """x [n_tokens, n_used * n] + bias [n_experts, n] of each pair's expert."""
    return x + bias[chosen].reshape(x.shape)


def sum_experts(x: Floats, weights: Floats) -> Floats:
    """Pairs [n_tokens, n_used * n], each times its weight [n_tokens, n_used], added up by token: [n_tokens, n]."""
    pairs = x.reshape(*weights.shape, -1).astype(np.float64)
    return (pairs * weights[..., None]).sum(1).astype(np.float32)


def gate(x: Floats, by: Floats) -> Floats:
    """x * sigmoid(by), for x [n_tokens, n] and by [n_tokens, n or 1]."""
    return (x / (1 + np.exp(-by.astype(np.float64)))).astype(np.float32)
