"""How far two texts, or two lists of tokens, begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def n_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
