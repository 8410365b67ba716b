"""Pooling: the hidden states of a text become one row; and rows of length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.arch import architecture_of
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value

POOLINGS = ("none", "mean", "cls", "last")  # by their numbers in GGUF files
RANK = 4
# Which state the classifier of a family sees, where its file does not say so. llama.cpp has the same.
_RANKED_STATES = {"modern-bert": "mean", "qwen3": "last", "qwen2": "last", "llama": "last"}


def pooling_of(metadata: Mapping[str, Any]) -> tuple[str | None, bool]:
    """How a file says that texts are pooled, None where it does not; and whether a classifier makes scores of that.

    Raises FormatError or UnsupportedError for what is no pooling.
    """
    architecture = get_value(metadata, "general.architecture", str)
    key = f"{architecture}.pooling_type"
    if key not in metadata:
        return None, False
    number = get_value(metadata, key, int)
    if number == RANK:
        state = get_value(metadata, "edgellm.ranked_state", str, _RANKED_STATES.get(architecture, "cls"))
        if state not in POOLINGS[1:]:
            raise FormatError(f"edgellm.ranked_state is {state!r:.60}; expected {', '.join(POOLINGS[1:])}")
        return state, True
    if not 0 <= number < len(POOLINGS):
        raise UnsupportedError(f"{key} is {number}; edgellm knows 0 to {RANK}: {', '.join(POOLINGS)} and rank")
    return POOLINGS[number], False


def makes_vectors_alone(metadata: Mapping[str, Any]) -> bool:
    """Whether a file holds a model for vectors or ranks: an encoder, or a decoder that says how texts are pooled."""
    says_how = pooling_of(metadata)[0] is not None
    return says_how or architecture_of(metadata).is_encoder


def pool(states: np.ndarray, pooling: str) -> np.ndarray:
    """float32 [n_tokens, width] of one text -> [width], by "mean", "cls" (the first token) or "last"."""
    if pooling == "mean":
        return states.mean(0, dtype=np.float64).astype(np.float32)
    return states[0 if pooling == "cls" else -1].copy()


def normalized(rows: np.ndarray) -> np.ndarray:
    """float32 [n, width] -> the same directions at length 1; rows of zeros stay."""
    lengths = np.sqrt(np.square(rows.astype(np.float64)).sum(-1, keepdims=True))
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
