"""Byte-pair merging of many words at once, in NumPy.

In each round every word joins its best pair, so there are as many rounds as the longest word has joinings, and each is
some operations on one row of all symbols that are left. Words are short: a few rounds finish most of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.text.long_words import LONG, merge_long
from edgellm.text.merging import merge_pairs
from edgellm.text.pairs import EDGE, LOWER, NEVER, Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.text.pairs import Numbers

MANY = 64  # words from which NumPy is quicker than one after the other
BATCH = 8192  # words in a row, whose symbols a cache of the CPU holds
MOST = 256  # symbols of a word: a round goes over all that are left, so the work grows with their square
MOSTLY = 0.75  # of the words in a row should still have pairs to join; else the others are taken out
FEW = 24  # words, the last of a batch, that are quicker one by one


def worthwhile(words: list[str]) -> bool:
    """Whether these words should be merged here, rather than each by `merge_pairs`."""
    return len(words) >= MANY or any(len(word) >= LONG for word in words)


def merge_words(words: list[str], pairs: Pairs) -> list[list[int]]:
    """What is left of each word when its pairs are joined, as numbers of symbols."""
    merged: list[list[int]] = []
    for start in range(0, len(words), BATCH):
        with pairs.lock:
            merged += _merge_batch(words[start : start + BATCH], pairs)
    return merged


def _merge_batch(words: list[str], pairs: Pairs) -> list[list[int]]:
    row = _Row(words, pairs)
    alone = row.take(row.lengths > MOST)
    while True:
        best = row.best()
        going = best < NEVER
        n_going = np.count_nonzero(going)
        if n_going < FEW:
            break
        if n_going < MOSTLY * len(row.words):
            row.take(~going)
        else:
            row.join(best[going] & LOWER, going)
    alone += row.take(going)
    row.take(row.lengths > 0)
    for word in alone:
        row.merged[word] = _merge_alone(row.merged[word], pairs)
    return row.merged


def _merge_alone(symbols: list[int], pairs: Pairs) -> list[int]:
    if len(symbols) >= LONG and (merged := merge_long(np.array(symbols), pairs)) is not None:
        return merged.tolist()
    return list(map(pairs.number, merge_pairs([pairs.symbols[symbol] for symbol in symbols], pairs.rank)))


class _Row:
    """Words being merged, with all their symbols in one row.

    words:    the place of each in its batch.
    lengths:  of each, its edge included.
    symbols:  of all words, an edge behind each.
    waiting:  each symbol with the next one, as `Pairs` describes a pair.
    merged:   of the whole batch, the symbols of those that were taken out.
    """

    def __init__(self, words: list[str], pairs: Pairs) -> None:
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.pairs = pairs
        self.merged: list[list[int]] = [[]] * len(words)
        self.words: np.ndarray = np.arange(len(words))
        self.lengths: np.ndarray = lengths + 1
        self.symbols = np.insert(pairs.numbers("".join(words)), np.cumsum(lengths), EDGE)
        self.waiting = pairs.find(self.symbols, np.append(self.symbols[1:], EDGE))

    def take(self, chosen: NDArray[np.bool_]) -> list[int]:
        """Take words out of the row, as far as they are merged, and tell which."""
        its = np.repeat(chosen, self.lengths)
        words, lengths = self.words[chosen].tolist(), self.lengths[chosen]
        symbols, ends = self.symbols[its].tolist(), np.cumsum(lengths) - 1
        for word, start, end in zip(words, (ends + 1 - lengths).tolist(), ends.tolist(), strict=True):
            self.merged[word] = symbols[start:end]
        self.words, self.lengths = self.words[~chosen], self.lengths[~chosen]
        self.symbols, self.waiting = self.symbols[~its], self.waiting[~its]
        return words

    def best(self) -> Numbers:
        """The pair that each word joins next, the leftmost of equals: `rank << HALF | place`; from NEVER on: none."""
        if not len(self.words):
            return self.lengths
        starts = np.cumsum(self.lengths) - self.lengths
        return np.minimum.reduceat(self.waiting & ~LOWER | np.arange(len(self.waiting)), starts)

    def join(self, left: Numbers, joining: NDArray[np.bool_]) -> None:
        """Join a pair of each of some words. left: where they stand, in order."""
        self.symbols[left] = self.waiting[left] & LOWER
        stays = np.ones(len(self.symbols), bool)
        stays[left + 1] = False
        self.symbols, self.waiting = self.symbols[stays], self.waiting[stays]
        self.lengths = self.lengths - joining
        left = left - np.arange(len(left))  # as many symbols are gone before it
        new = np.concatenate([left - 1, left])  # before the very first symbol is the very last: an edge
        self.waiting[new] = self.pairs.find(self.symbols[new], self.symbols[new + 1])
