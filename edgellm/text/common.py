"""How far two texts, or two lists of tokens, begin alike; and what white space is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Unicode's White_Space, which is what `tokenizers` strips and cuts at, as members of a class of regular expressions;
# Python's `isspace` has four characters more.
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


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
