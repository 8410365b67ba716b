"""Byte-pair merging of one very long word, by all its pairs at once.

A heap joins one pair at a time (`merging.py`), which is best for words as people write them. A megabyte without a
space has hundreds of thousands of pairs, but few different ones: here all places of the pair whose turn it is are
joined together in NumPy, and the few places of a rare pair one by one. The order is that of the heap: lowest rank
first, leftmost among equals. Where a joining makes a pair whose turn has come or passed, the rest waits for it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from edgellm.text.pairs import EDGE, HALF, LOWER, NEVER, Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.text.pairs import Numbers

    Places = NDArray[np.int64]

LONG = 20_000  # symbols from which a word is merged here
MANY = 24  # places from which NumPy is quicker than a loop
PATIENCE = 40  # places that wait again, for each symbol of the word, before the heap is the better way

_DEAD = EDGE - 1


def merge_long(symbols: Numbers, pairs: Pairs) -> Numbers | None:
    """What is left of a word when its pairs are joined.

    None when the ranks make it wait so often that a heap is quicker.
    """
    return _Word(symbols, pairs).merge()


class _Word:
    """A word being merged: a linked list of symbols, and the places of the pairs that wait for their turn.

    The place of a pair is that of its left symbol. `pair` has what `Pairs` says about each.
    """

    def __init__(self, symbols: Numbers, pairs: Pairs) -> None:
        n = len(symbols)
        self.pairs = pairs
        self.symbol = np.concatenate([[EDGE], symbols, [EDGE]]).astype(np.int64)
        self.next = np.arange(1, n + 3)
        self.previous = np.arange(-1, n + 1)
        self.pair = np.append(pairs.find(self.symbol[:-1], self.symbol[1:]), NEVER)
        self.waiting: dict[int, tuple[list[int], list[Places]]] = {}  # places by rank: single ones, and many at once
        self.turns: list[int] = []
        self.patience = PATIENCE * n + MANY
        self._wait(np.arange(n + 1), self.pair[:-1])

    def merge(self) -> Numbers | None:
        while self.turns:
            rank = heappop(self.turns)
            few, many = self.waiting.pop(rank)
            if many or len(few) >= MANY:
                self._join_many(rank, _in_order(np.concatenate([np.array(few, np.int64), *many])))
            else:
                self._join_few(rank, sorted(set(few)))
            if self.patience < 0:
                return None
        return self.symbol[self.symbol >= 0]

    def _wait(self, places: Places, pairs: Numbers) -> None:
        """Let pairs wait for their turn, those of one rank together."""
        real = pairs < NEVER
        if not real.any():
            return
        ranks = pairs[real] >> HALF
        by_rank = np.argsort(ranks, kind="stable")
        ranks = ranks[by_rank]
        starts = np.flatnonzero(np.diff(ranks, prepend=-1))
        places = places[real][by_rank]
        listed = places.tolist()
        ends = [*starts[1:].tolist(), len(listed)]
        for rank, start, end in zip(ranks[starts].tolist(), starts.tolist(), ends, strict=True):
            few, many = self._places_of(rank)
            if end - start < MANY:
                few += listed[start:end]
            else:
                many.append(places[start:end])

    def _places_of(self, rank: int) -> tuple[list[int], list[Places]]:
        """The places that wait for the turn of a rank."""
        if rank not in self.waiting:
            self.waiting[rank] = [], []
            heappush(self.turns, rank)
        return self.waiting[rank]

    def _join_many(self, rank: int, places: Places) -> None:
        places = places[self.pair[places] >> HALF == rank]
        taken = places[_every_other(self.next[places[:-1]] == places[1:])] if len(places) else places
        if not len(taken):
            return
        made = self.pair[taken] & LOWER
        right = self.next[taken]
        after = self.next[right]
        touches = after[:-1] == taken[1:]  # the next pair begins where this one ends, and is joined after it
        before = self.symbol[self.previous[taken]]
        before[1:][touches] = made[:-1][touches]
        left_pairs = self.pairs.find(before, made)
        right_pairs = self.pairs.find(made, self.symbol[after])
        early = np.minimum(left_pairs, right_pairs) >> HALF <= rank
        if early.any():
            n = int(np.argmax(early)) + 1
            rest = places[places > taken[n - 1]]
            if len(rest):
                self.patience -= len(rest)
                self._places_of(rank)[1].append(rest)
            taken, made, right, after = taken[:n], made[:n], right[:n], after[:n]
            left_pairs, right_pairs, touches = left_pairs[:n], right_pairs[:n], touches[: n - 1]
        self.symbol[taken] = made
        self.symbol[right] = _DEAD
        self.next[taken] = after
        self.previous[after] = taken
        right_pairs[:-1][touches] = left_pairs[1:][touches]
        before_taken = self.previous[taken]
        self.pair[right] = NEVER
        self.pair[before_taken] = left_pairs
        self.pair[taken] = right_pairs
        new = np.append(True, ~touches)  # the left pair of any other is the right pair of the one before
        self._wait(np.concatenate([before_taken[new], taken]), np.concatenate([left_pairs[new], right_pairs]))

    def _join_few(self, rank: int, places: list[int]) -> None:
        symbol, following, previous, pair = self.symbol, self.next, self.previous, self.pair
        for n, place in enumerate(places, 1):
            if pair[place] >> HALF != rank:
                continue
            made = int(pair[place]) & LOWER
            right = int(following[place])
            after = int(following[right])
            symbol[place], symbol[right] = made, _DEAD
            following[place] = after
            previous[after] = place
            pair[right] = NEVER
            before = int(previous[place])
            early = False
            new = (before, int(symbol[before]), made), (place, made, int(symbol[after]))
            for at, first, second in new:
                pair[at] = now = self.pairs.find_one(first, second)
                if now < NEVER:
                    self._places_of(now >> HALF)[0].append(at)
                    early |= now >> HALF <= rank
            if early and n < len(places):
                self.patience -= len(places) - n
                self._places_of(rank)[0].extend(places[n:])
                return


def _in_order(places: Places) -> Places:
    """The places from left to right, each once."""
    places = np.sort(places, kind="stable")
    return places[np.append(True, places[1:] != places[:-1])]


def _every_other(follows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of a row of places are joined, where `follows` says that a place begins with the one before's right half.

    In "aaaaa" the pairs overlap: the first, the third and so on of a run are joined.
    """
    index = np.arange(len(follows) + 1)
    first = np.concatenate([[True], ~follows])
    return (index - np.maximum.accumulate(np.where(first, index, 0))) % 2 == 0
