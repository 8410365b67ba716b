"""NumPy twins of what goes backwards through mixtures of experts (see `reference_experts.py`), in float64."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.reference import Floats, Ints


def route_backward(
    logits: Floats,
    chosen: Ints,
    dy: Floats,
    scoring: str = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    scales: Floats | None = None,
) -> Floats:
    """By logits [n_tokens, n_experts] of `route`, from the gradient by its weights, dy [n_tokens, n_used]."""
    x, gradient = logits.astype(np.float64), dy.astype(np.float64) * scale
    if scales is not None:
        gradient = gradient * scales[chosen]
    out, own = np.zeros(x.shape), np.take_along_axis(x, chosen, -1)
    everywhere = _softmax(x) if scoring == "softmax" else 1 / (1 + np.exp(-x))
    scores = _softmax(own) if scoring == "logits" else np.take_along_axis(everywhere, chosen, -1)
    if normalize:
        total = scores.sum(-1, keepdims=True)
        gradient = (gradient - (gradient * scores / total).sum(-1, keepdims=True)) / total
    if scoring == "sigmoid":
        np.put_along_axis(out, chosen, gradient * scores * (1 - scores), -1)
        return out.astype(np.float32)
    products = (gradient * scores).sum(-1, keepdims=True)
    if scoring == "logits":
        np.put_along_axis(out, chosen, scores * (gradient - products), -1)
        return out.astype(np.float32)
    np.put_along_axis(out, chosen, gradient, -1)
    return (everywhere * (out - products)).astype(np.float32)


def balance_gradient(logits: Floats, chosen: Ints, scale: float) -> tuple[Floats, Floats]:
    """By logits [n_tokens, n_experts], of n_experts * (shares of tokens) . (means of softmax); and [2, n_experts], the
    experts' numbers of tokens and sums of softmax.
    """
    n_tokens, n_experts = logits.shape
    p, counts = _softmax(logits.astype(np.float64)), np.bincount(chosen.reshape(-1), minlength=n_experts)
    shares = counts / n_tokens
    out = scale * n_experts / n_tokens * p * (shares - (p @ shares)[:, None])
    return out.astype(np.float32), np.stack([counts, p.sum(0)]).astype(np.float32)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sum_experts_backward(x: Floats, weights: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """By pairs x [n_tokens, n_used * n] and by weights [n_tokens, n_used] of `sum_experts`."""
    pairs, gradient = x.reshape(*weights.shape, -1).astype(np.float64), dy.astype(np.float64)[:, None]
    d_x = (weights[..., None] * gradient).reshape(x.shape)
    return d_x.astype(np.float32), (pairs * gradient).sum(-1).astype(np.float32)


def gate_backward(x: Floats, gate: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """By both of x * sigmoid(gate), for a gate as wide as x, or of one number."""
    s = 1 / (1 + np.exp(-gate.astype(np.float64)))
    slopes = dy.astype(np.float64) * x * s * (1 - s)
    d_gate = slopes.sum(-1, keepdims=True) if gate.shape[1] == 1 and x.shape[1] > 1 else slopes
    return (dy * s).astype(np.float32), d_gate.astype(np.float32)


def experts_transposed(weights: Floats, dy: Floats, chosen: Ints) -> Floats:
    """W^T dy of each pair: [n_tokens, n_used * n_in].

    For weights [n_experts, n_out, n_in] and dy [n_tokens, n_used * n_out].
    """
    pairs = dy.reshape(*chosen.shape, -1).astype(np.float64)
    return np.einsum("tso,tsoi->tsi", pairs, weights[chosen].astype(np.float64)).reshape(len(dy), -1).astype(np.float32)


def expert_outer_sum(sums: Floats, a: Floats, b: Floats, chosen: Ints) -> Floats:
    """sums [n_experts, n_out, n_in] + a b^T of each pair; b is a token's, or its pair's."""
    total, (n_tokens, n_used) = sums.astype(np.float64), chosen.shape
    of_a = a.reshape(n_tokens, n_used, -1)
    of_b = np.broadcast_to(b.reshape(n_tokens, -1, sums.shape[2]), (n_tokens, n_used, sums.shape[2]))
    np.add.at(total, chosen, np.einsum("tso,tsi->tsoi", of_a, of_b, dtype=np.float64))
    return total.astype(np.float32)


def expert_bias_sum(sums: Floats, a: Floats, chosen: Ints) -> Floats:
    """sums [n_experts, n] + each pair's part of a [n_tokens, n_used * n]."""
    total = sums.astype(np.float64)
    np.add.at(total, chosen, a.reshape(*chosen.shape, -1))
    return total.astype(np.float32)
