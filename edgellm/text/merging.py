"""The one algorithm behind byte-pair encoding: join the best pair of neighbours until none is left.

Both families of tokenizers use it. GPT-2 style merges rank a pair by its place in the list of merges;
SentencePiece ranks it by the score of the token that it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import pairwise

SHORT = 32  # symbols of a word whose pairs are looked through one by one, which is quicker than a heap
NEVER = float("inf")


def merge_pairs(symbols: list[bytes], rank: Callable[[bytes, bytes], float | None]) -> list[bytes]:
    """Join neighbouring symbols, lowest rank first and leftmost among equals, and return what remains.

    `rank(left, right)` is None for a pair that must not be joined. A heap holds the candidates and the
    symbols form a linked list, so a word of n symbols costs O(n log n): a megabyte of one letter is no trap.
    """
    n = len(symbols)
    if n < 2:
        return symbols
    if n <= SHORT:
        return _merge_short(symbols, rank)
    heap = []
    for i in range(n - 1):
        r = rank(symbols[i], symbols[i + 1])
        if r is not None:
            heap.append((r, i, len(symbols[i]) + len(symbols[i + 1])))
    if not heap:
        return symbols
    heapify(heap)
    symbols = [*symbols, b""]  # the end, which joins with nothing
    following = list(range(1, n + 1))
    previous = list(range(-1, n))
    while heap:
        _, i, size = heappop(heap)
        left, j = symbols[i], following[i]
        right = symbols[j]
        if not left or not right or len(left) + len(right) != size:
            continue  # one of the two has been joined with another symbol since
        symbols[i] = left = left + right
        symbols[j] = b""
        j = following[i] = following[j]
        previous[j] = i
        if j < n and (r := rank(left, symbols[j])) is not None:
            heappush(heap, (r, i, len(left) + len(symbols[j])))
        h = previous[i]
        if h >= 0 and (r := rank(symbols[h], left)) is not None:
            heappush(heap, (r, h, len(symbols[h]) + len(left)))
    return [symbol for symbol in symbols if symbol]


def _merge_short(symbols: list[bytes], rank: Callable[[bytes, bytes], float | None]) -> list[bytes]:
    """The same for few symbols: the ranks of all pairs stand in a list."""
    symbols = symbols.copy()
    ranks = [NEVER if (r := rank(left, right)) is None else r for left, right in pairwise(symbols)]
    while ranks and (best := min(ranks)) != NEVER:
        i = ranks.index(best)
        joined = symbols[i] = symbols[i] + symbols.pop(i + 1)
        del ranks[i]
        if i < len(ranks):
            ranks[i] = NEVER if (r := rank(joined, symbols[i + 1])) is None else r
        if i:
            ranks[i - 1] = NEVER if (r := rank(symbols[i - 1], joined)) is None else r
    return symbols
