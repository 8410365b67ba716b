"""The twins of `ops/streams.py` in NumPy (see `reference.py`)."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.reference import Floats


def add_mixed(x: Floats, y: Floats, weights: Floats, n_cols: int, plus: float = 0.0) -> Floats:
    """Part i of x [n_tokens, n_out * n_cols] + the sum over j of (weights[i, j] + plus) * part j of y.

    y: [n_tokens, n_in * n_cols]. weights: [n_tokens, n_out * n_in], each token its own.
    """
    n_out, n_in = x.shape[1] // n_cols, y.shape[1] // n_cols
    by = weights.reshape(len(x), n_out, n_in).astype(np.float64) + plus
    added = np.einsum("toi,tic->toc", by, y.reshape(len(x), n_in, n_cols).astype(np.float64))
    return (x + added.reshape(x.shape)).astype(np.float32)


def add_to_columns(x: Floats, y: Floats, first: int, times: int) -> Floats:
    """y added to the columns of x from `first` on, and to the next as many, so many times."""
    out = x.copy()
    width = y.shape[1]
    for part in range(times):
        out[:, first + part * width : first + (part + 1) * width] += y
    return out


def match_size(x: Floats, like: Floats, least: float) -> Floats:
    """x * rms(like) / sqrt(max(mean(x**2), least)), row by row."""
    wide, size = x.astype(np.float64), np.sqrt(np.square(like.astype(np.float64)).mean(-1, keepdims=True))
    own = np.maximum(np.square(wide).mean(-1, keepdims=True), least)
    return (wide * size / np.sqrt(own)).astype(np.float32)


def keep_large(x: Floats, deviations: float) -> Floats:
    """max(0, x - (mean + deviations * standard deviation)), row by row."""
    wide = x.astype(np.float64)
    cutoff = wide.mean(-1, keepdims=True) + deviations * wide.std(-1, keepdims=True)
    return np.maximum(wide - cutoff, 0).astype(np.float32)
