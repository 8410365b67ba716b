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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

LONG = 20_000  # symbols from which a word is merged here
MANY = 24  # places from which NumPy is quicker than a loop
PATIENCE = 40  # places that wait again, for each symbol of the word, before the heap is the better way

_DEAD = -1


class PairTable:
    """The pairs of symbols that may be joined. Symbols are numbers from 0 to n_symbols - 1.

    left, right, rank, made:  of each pair, integers of shape (n_pairs,): what it joins, when (the lowest rank comes
    first) and which symbol it makes. Of a pair that stands twice, the last counts.
    """

    def __init__(self, left: Places, right: Places, rank: Places, made: Places, n_symbols: int) -> None:
        self.edge = n_symbols  # stands before and after the word, and joins with nothing
        self._width = n_symbols + 1
        keys = left.astype(np.int64) * self._width + right
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.zeros(0, bool)
        self._keys = keys[last]
        self.rank = rank[by_key][last].astype(np.int64)
        self.made = made[by_key][last].astype(np.int64)
        self.index = dict(zip(self._keys.tolist(), range(len(self._keys)), strict=True))
        self.ranks, self.results = self.rank.tolist(), self.made.tolist()

    def key(self, left: int, right: int) -> int:
        """Where `index` knows a pair."""
        return left * self._width + right

    def find(self, left: Places, right: Places) -> Places:
        """The entry of each pair, or -1."""
        keys = left * self._width + right
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return np.where(self._keys[at] == keys, at, -1) if len(self._keys) else np.full(len(keys), -1)


def merge_long(symbols: Places, table: PairTable) -> tuple[Places, Places] | None:
    """What is left of a word when its pairs are joined: the symbols, and where in the word each begins.

    None when the ranks make it wait so often that a heap is quicker.
    """
    return _Word(symbols, table).merge()


class _Word:
    """A word being merged: a linked list of symbols, and the places of the pairs that wait for their turn.

    The place of a pair is that of its left symbol. `entry` is the pair's number in the table, or -1.
    """

    def __init__(self, symbols: Places, table: PairTable) -> None:
        n = len(symbols)
        self.table = table
        self.symbol = np.concatenate([[table.edge], symbols, [table.edge]]).astype(np.int64)
        self.next = np.arange(1, n + 3)
        self.previous = np.arange(-1, n + 1)
        self.entry = np.append(table.find(self.symbol[:-1], self.symbol[1:]), -1)
        self.waiting: dict[int, tuple[list[int], list[Places]]] = {}  # places by rank: single ones, and many at once
        self.turns: list[int] = []
        self.patience = PATIENCE * n + MANY
        self._wait(np.arange(n + 1), self.entry[:-1])

    def merge(self) -> tuple[Places, Places] | None:
        while self.turns:
            rank = heappop(self.turns)
            few, many = self.waiting.pop(rank)
            if many or len(few) >= MANY:
                self._join_many(rank, _in_order(np.concatenate([np.array(few, np.int64), *many])))
            else:
                self._join_few(rank, sorted(set(few)))
            if self.patience < 0:
                return None
        alive = np.flatnonzero(self.symbol != _DEAD)[1:-1]
        return self.symbol[alive], alive - 1

    def _wait(self, places: Places, entries: Places) -> None:
        """Let pairs wait for their turn, those of one rank together."""
        real = entries >= 0
        if not real.any():
            return
        ranks = self.table.rank[entries[real]]
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
        places = places[(self.entry[places] >= 0) & (self.table.rank[self.entry[places]] == rank)]
        taken = places[_every_other(self.next[places[:-1]] == places[1:])] if len(places) else places
        if not len(taken):
            return
        made = self.table.made[self.entry[taken]]
        right = self.next[taken]
        after = self.next[right]
        touches = after[:-1] == taken[1:]  # the next pair begins where this one ends, and is joined after it
        before = self.symbol[self.previous[taken]]
        before[1:][touches] = made[:-1][touches]
        left_pairs = self.table.find(before, made)
        right_pairs = self.table.find(made, self.symbol[after])
        early = self._come_early(left_pairs, rank) | self._come_early(right_pairs, rank)
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
        self.entry[right] = -1
        self.entry[before_taken] = left_pairs
        self.entry[taken] = right_pairs
        new = np.append(True, ~touches)  # the left pair of any other is the right pair of the one before
        self._wait(np.concatenate([before_taken[new], taken]), np.concatenate([left_pairs[new], right_pairs]))

    def _come_early(self, entries: Places, rank: int) -> NDArray[np.bool_]:
        return (entries >= 0) & (self.table.rank[entries] <= rank)

    def _join_few(self, rank: int, places: list[int]) -> None:
        table, symbol, following, previous, entry = self.table, self.symbol, self.next, self.previous, self.entry
        for n, place in enumerate(places, 1):
            pair = int(entry[place])
            if pair < 0 or table.ranks[pair] != rank:
                continue
            made = table.results[pair]
            right = int(following[place])
            after = int(following[right])
            symbol[place], symbol[right] = made, _DEAD
            following[place] = after
            previous[after] = place
            entry[right] = -1
            before = int(previous[place])
            early = False
            new = (before, int(symbol[before]), made), (place, made, int(symbol[after]))
            for at, first, second in new:
                pair = table.index.get(table.key(first, second), -1)
                entry[at] = pair
                if pair >= 0:
                    self._places_of(table.ranks[pair])[0].append(at)
                    early |= table.ranks[pair] <= rank
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
