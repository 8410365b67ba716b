"""The same figures in float64, in one go: what the tests of this floor compare with."""

from __future__ import annotations

import numpy as np

from edgellm.evaluate.windows import windows


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def scored(logits_of, tokenizer, ids: list[int], n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [n, n_vocab] by which the tokens [n] of each window's second half are foreseen."""
    parts = windows(tokenizer, ids, n_ctx)
    half = n_ctx // 2
    rows = np.concatenate([log_softmax(logits_of(window))[half:-1] for window in parts])
    return rows, np.concatenate([window[half + 1 :] for window in parts])


def error(samples: np.ndarray) -> float:
    return float(np.std(samples, ddof=1) / np.sqrt(len(samples)))
