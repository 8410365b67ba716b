"""The twins of `ops/recurrent.py` in NumPy (see `reference.py`): one text, from one state to the next."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.reference import Floats


def causal_conv(x: Floats, weight: Floats, state: Floats) -> tuple[Floats, Floats]:
    """Each column of x [n_tokens, n_cols] convolved with taps of its own, weight [n_taps, n_cols]; and the next state.

    state:  the inputs of the last n_taps - 1 tokens, [n_taps - 1, n_cols], the oldest first.
    """
    n_taps, seen = len(weight), np.concatenate([state, x]).astype(np.float64)
    out = sum(seen[tap : tap + len(x)] * weight[tap] for tap in range(n_taps))
    return np.asarray(out, np.float32), seen[len(x) :].astype(np.float32)


def delta_rule(
    x: Floats,
    decay: Floats,
    beta: Floats,
    rate: Floats,
    bias: Floats,
    state: Floats,
    n_key_heads: int,
    epsilon: float,
    n_neighbours: int = 1,
) -> tuple[Floats, Floats]:
    """The gated delta rule (Yang et al., 2024), token by token: what every head reads, and the next state.

    x:            [n_tokens, ...]: queries and keys of n_key_heads heads, then values; head h of values goes with head
                  h // n_neighbours % n_key_heads of keys.
    decay, beta:  [n_tokens, n_heads], as logits. rate, bias: [n_heads].
    state:        [n_heads, key_dim, value_dim].
    """
    n_heads, key_dim, value_dim = state.shape
    state, n_keys = state.astype(np.float64), n_key_heads * key_dim
    out = np.empty((len(x), n_heads, value_dim))
    for t, row in enumerate(x.astype(np.float64)):
        queries, keys = (row[i * n_keys : (i + 1) * n_keys].reshape(n_key_heads, key_dim) for i in (0, 1))
        values = row[2 * n_keys :].reshape(n_heads, value_dim)
        for head in range(n_heads):
            q, k = (_of_length_one(rows[head // n_neighbours % n_key_heads], epsilon) for rows in (queries, keys))
            kept = np.exp(rate[head] * np.logaddexp(0, decay[t, head].astype(np.float64) + bias[head]))
            state[head] *= kept
            wrong = (values[head] - k @ state[head]) / (1 + np.exp(-beta[t, head].astype(np.float64)))
            state[head] += np.outer(k, wrong)
            out[t, head] = q @ state[head] / np.sqrt(key_dim)
    return out.reshape(len(x), -1).astype(np.float32), state.astype(np.float32)


def _of_length_one(x: Floats, epsilon: float) -> Floats:
    return np.asarray(x / np.sqrt((x * x).sum() + epsilon))
