"""A whole vocabulary of candidates. Nothing of it is sorted, and nothing copied.

The largest logit of every group of 64, which the program that made the logits has found, tells where to look. What a
grammar forbids are bits, a word for each group. Other logits are written over the model's, which are given back after
the choice: to copy a million bytes takes longer than all the rest.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.engine.sampling.groups import ALL_BITS, GroupLoops, rows_of, spread_of
from edgellm.kernels.records import MAXIMA_GROUP

LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32
GROUP_BITS = MAXIMA_GROUP.bit_length() - 1
FEW_GROUPS = 64  # of which a list is made, where a grammar forbids all tokens but theirs
NO_WEIGHT = 87.4  # exponents as far below 0 give a weight of 0


class AllTokens:
    """Logits of all tokens in the order of their ids, minus infinity for those that must not come."""

    def __init__(self, logits: np.ndarray, maxima: np.ndarray | None, loops: GroupLoops, is_own: bool) -> None:
        """logits: [n]. maxima: the largest of every MAXIMA_GROUP, where they are known.

        is_own:  the logits may be written over for good.
        """
        self._logits, self._known, self._loops, self._is_own = logits, maxima, loops, is_own
        self._words: np.ndarray | None = None
        self._has_own_maxima = maxima is None
        self._lent: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._largest: float | None = None
        self._weights: tuple[float, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def maxima(self) -> np.ndarray:
        """The largest of every MAXIMA_GROUP of the tokens that may come; minus infinity where none of them may."""
        if self._known is None:
            every = np.arange(-(-len(self) // MAXIMA_GROUP))
            self._known = self._loops.largest(self._logits, self._words, every)
        return self._known

    @property
    def largest(self) -> float:
        """The largest logit."""
        if self._largest is None:
            self._largest = float(self.maxima.max())
        return self._largest

    def logits(self) -> np.ndarray:
        """All of them, [n], to be read only; slow where a grammar forbids some."""
        if self._words is None:
            return self._logits
        return rows_of(self._logits, self._words, np.arange(len(self._words))).reshape(-1)[: len(self)]

    # --- where they are -----------------------------------------------------------------------------------

    def at_least(self, bound: float) -> np.ndarray:
        """Positions of the tokens whose logits are a bound or more, in rising order."""
        least = self._logits.dtype.type(max(-LARGEST, min(bound, LARGEST)))
        (groups,) = (self.maxima >= least).nonzero()
        (found,) = (rows_of(self._logits, self._words, groups) >= least).reshape(-1).nonzero()  # quicker than of rows
        return groups[found >> GROUP_BITS] << GROUP_BITS | found & MAXIMA_GROUP - 1

    def most_likely(self, k: int) -> np.ndarray:
        """Positions of the k largest logits or some more, the largest first; among equal ones the smaller positions.

        All logits that it leaves out are smaller, or equal and behind. There are fewer when fewer may come.
        """
        # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
        some = self.maxima if k < len(self.maxima) else self.logits()
        bound = float(np.partition(some, len(some) - k)[len(some) - k]) if k < len(some) else -math.inf
        found = self.at_least(bound)
        return found[(-self._logits[found]).argsort(kind="stable")]

    def likeliest(self) -> int:
        """The position of the largest logit; among equal ones the first."""
        group = int(np.argmax(self.maxima))
        return group * MAXIMA_GROUP + int(np.argmax(self.row(group)))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The logits of tokens that may come, as a copy."""
        return self._logits[positions]

    def row(self, group: int) -> np.ndarray:
        """All of one group, [MAXIMA_GROUP] or, of the last one, fewer."""
        found = self._logits[group * MAXIMA_GROUP : (group + 1) * MAXIMA_GROUP]
        if self._words is None:
            return found
        bits = np.unpackbits(self._words[group : group + 1].view(np.uint8), bitorder="little")[: len(found)]
        return np.where(bits, found, found.dtype.type(-np.inf))

    # --- all of them together -----------------------------------------------------------------------------

    def weights(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Groups that have a weight, int64 [m], and the sums of `GroupLoops.weights` over them, float64 [m, 2]."""
        if self._weights is None or self._weights[0] != temperature:
            least = max(-LARGEST, self.largest - NO_WEIGHT * temperature)
            (groups,) = (self.maxima >= np.float32(least)).nonzero()
            sums = self._loops.weights(self._logits, self._words, groups, self.largest, temperature)
            self._weights = temperature, groups, sums
        return self._weights[1:]

    def spread(self) -> tuple[int, float]:
        """The number of tokens that may come, and the variance of their logits."""
        (groups,) = (self.maxima > -math.inf).nonzero()
        if not len(groups):
            return 0, 0.0
        # Squares are those of distances to a middle that is not far off, so that float32 is enough.
        middle = float(self.maxima[groups].mean(dtype=np.float64))
        n, total, squares = self._loops.spread(self._logits, self._words, groups, middle).tolist()
        if not math.isfinite(squares):
            return spread_of(rows_of(self._logits, self._words, groups))
        return int(n), max(0.0, squares / n - (total / n) ** 2)

    # --- other logits -------------------------------------------------------------------------------------

    def allow(self, words: np.ndarray) -> None:
        """Only some tokens may come. words: uint64, a bit for each token; every word is a group of MAXIMA_GROUP."""
        maxima = self.maxima
        self._largest = self._weights = None
        words = words[: len(maxima)]
        self._words = words if self._words is None else self._words & words
        self._known, self._has_own_maxima = np.where(words != 0, maxima, np.float32(-np.inf)), True
        self._look_again(((words != 0) & (words != ALL_BITS)).nonzero()[0])

    def few_of(self, words: np.ndarray) -> np.ndarray | None:
        """Positions of the tokens that these words and those before allow, in rising order; None when they are many."""
        words = words[: -(-len(self) // MAXIMA_GROUP)]
        (groups,) = words.nonzero()
        if len(groups) > FEW_GROUPS:
            return None
        some = words[groups] if self._words is None else words[groups] & self._words[groups]
        (found,) = np.unpackbits(some.view(np.uint8), bitorder="little").nonzero()
        positions = groups[found >> GROUP_BITS] << GROUP_BITS | found & MAXIMA_GROUP - 1
        return positions[: positions.searchsorted(len(self))]

    def put(self, positions: np.ndarray, logits: np.ndarray | float) -> None:
        """Logits at some positions, int64, in rising order; minus infinity forbids a token."""
        if not self._is_own:
            self._logits, self._is_own = self._logits.copy(), True
        maxima, before = self.maxima, self._logits[positions]
        self._largest = self._weights = None
        if self._lent is not None:
            self._lent.append((positions, before))
        self._logits[positions] = logits
        groups = positions >> GROUP_BITS
        largest = maxima[groups]
        self._look_again(groups[(before == largest) | (self._logits[positions] > largest)])

    def _look_again(self, groups: np.ndarray) -> None:
        """For the largest of some groups."""
        if len(groups):
            if not self._has_own_maxima:
                self._known, self._has_own_maxima = self.maxima.copy(), True
            self.maxima[groups] = self._loops.largest(self._logits, self._words, groups)

    def borrow(self) -> None:
        """Write over the logits until `give_back`, where that can be done."""
        if not self._is_own and self._logits.flags.writeable:
            self._is_own, self._lent = True, []

    def give_back(self) -> None:
        """The logits are again what they were when they were borrowed."""
        for positions, before in reversed(self._lent or ()):
            self._logits[positions] = before
        self._is_own, self._lent = False, None
