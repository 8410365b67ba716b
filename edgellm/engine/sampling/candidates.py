"""The tokens that may come next, and their logits: what every step works on.

A vocabulary can have a quarter of a million tokens. As long as all of them are candidates, nothing is copied or sorted:
the largest of every group of 64 logits, which the program that made the logits has found, tell where to look.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgellm.engine.sampling.groups import IN_NUMPY, GroupLoops
from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP

LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32
FEW = 64  # tokens that are tried first, where it is not known how many are needed
MANY = 256  # other logits, from which on it is quicker to look for all maxima anew
SPARSE = 16  # from this part of a vocabulary down, the tokens that may come are listed
ALL_BITS = np.uint64(2**64 - 1)
COOLEST = 1e-20  # temperatures below it are too much for float32


class Scratch:
    """Memory for arrays as large as the vocabulary, used again for every token: to get it anew takes longer than to
    fill it.

    loops:  what goes through all logits.
    """

    def __init__(self, loops: GroupLoops = IN_NUMPY) -> None:
        self.loops = loops
        self._arrays: dict[str, np.ndarray] = {}

    def floats(self, name: str, n: int) -> np.ndarray:
        """float32 [n] of any content; what had it before is gone."""
        found = self._arrays.get(name)
        if found is None or len(found) != n:
            found = self._arrays[name] = np.empty(n, np.float32)
        return found


class Candidates:
    """Tokens and their logits. Steps change it in place; there always is a token that may come.

    ids:          int64 [n]; None while all tokens of the vocabulary are candidates, in the order of their ids.
    logits:       float32 or float64 [n]; minus infinity is the logit of a token that must not come.
    temperature:  what the logits are still to be divided by.
    is_sorted:    the largest logit comes first; among equal ones the smaller id.
    """

    def __init__(self, logits: np.ndarray, maxima: np.ndarray | None = None, scratch: Scratch | None = None) -> None:
        """All tokens of a vocabulary: float32 [n_vocab], and the largest of every MAXIMA_GROUP where they are known.

        scratch:  is used as long as these candidates are.
        """
        self.ids: np.ndarray | None = None
        self.logits = logits
        self.temperature = 1.0
        self.is_sorted = False
        self._maxima = maxima
        self._scratch = scratch or Scratch()
        self._is_own = False  # the logits may be written to

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def maxima(self) -> np.ndarray:
        """The largest logit of every MAXIMA_GROUP candidates, while all tokens are candidates."""
        if self._maxima is None:
            self._maxima = self._scratch.loops.largest(self.logits)
        return self._maxima

    @property
    def largest(self) -> float:
        """The largest logit. Raises UsageError when no token may come."""
        if not len(self):
            found = -math.inf
        elif self.is_sorted:
            found = float(self.logits[0])
        else:
            found = float(self.logits.max() if self.ids is not None else self.maxima.max())
        if found == -math.inf:
            raise UsageError("no token may come next: all are forbidden, by logit_bias, banned_strings or a step")
        return found

    def id_at(self, position: int) -> int:
        return position if self.ids is None else int(self.ids[position])

    # --- how likely they are ------------------------------------------------------------------------------

    def weights(self) -> np.ndarray:
        """How likely tokens are beside the likeliest, whose weight is 1: float64 [n]."""
        return _weights(self.logits, self.largest, self.temperature)

    def probabilities(self) -> np.ndarray:
        """float64 [n]; their sum is 1."""
        weights = self.weights()
        return weights / weights.sum()

    def total(self) -> float:
        """The sum of all weights."""
        if self.ids is not None or self.temperature < COOLEST:
            return float(self.weights().sum())
        return float(self._group_weights()[0].sum())

    def bound(self, share: float) -> float:
        """The logit of a token that is so many times as likely as the likeliest."""
        return self.largest + self.temperature * math.log(share) if share > 0 else -math.inf

    def entropy(self) -> float:
        """Of the probabilities, in nats."""
        p = self.probabilities()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    # --- which of them stay -------------------------------------------------------------------------------

    def keep(self, positions: np.ndarray, is_sorted: bool = False) -> None:
        """Leave out all others."""
        self.ids = positions if self.ids is None else self.ids[positions]
        self.logits = self.logits[positions]
        self._maxima, self._is_own, self.is_sorted = None, True, is_sorted

    def _keep_first(self, n: int) -> None:
        """Of sorted ones."""
        if n < len(self):
            assert self.ids is not None
            self.ids, self.logits = self.ids[:n], self.logits[:n]

    def keep_likeliest(self) -> None:
        """Keep the largest logit alone; among equal ones the first."""
        if self.ids is None:
            group = int(np.argmax(self.maxima))
            start = group * MAXIMA_GROUP
            position = start + int(np.argmax(self.logits[start : start + MAXIMA_GROUP]))
        else:
            position = int(np.argmax(self.logits))
        self.ids, self.logits = np.array([self.id_at(position)]), self.logits[position : position + 1]
        self._maxima, self._is_own, self.is_sorted = None, False, True

    def keep_most_likely(self, k: int) -> None:
        """Keep the k largest logits, the largest first; among equal ones the smaller ids."""
        if self.ids is None:
            self.keep(_most_likely(self.logits, self.maxima, k), is_sorted=True)
        else:
            self.sort()
            self._keep_first(k)

    def keep_reaching(self, share: float) -> None:
        """Keep the most likely tokens until their probabilities reach `share`, the largest first."""
        if self.ids is None and self.temperature >= COOLEST:
            self._keep_reaching_of_all(share * self.total())
            return
        self.sort()
        weights = self.weights()
        self._keep_first(_n_reaching(weights, share * weights.sum()))

    def keep_at_least(self, bound: float) -> None:
        """Keep logits from a bound on; the largest stays in any case."""
        positions = self.at_least(min(bound, self.largest))
        if self.is_sorted:
            self._keep_first(len(positions))
        else:
            self.keep(positions)

    def at_least(self, bound: float) -> np.ndarray:
        """The positions of logits from a bound on."""
        least = self.logits.dtype.type(max(-LARGEST, min(bound, LARGEST)) if bound > -math.inf else bound)
        if self.ids is not None:
            return np.flatnonzero(self.logits >= least)
        positions = _of_groups(np.flatnonzero(self.maxima >= least), len(self.logits))
        return positions[self.logits[positions] >= least]

    def sort(self) -> None:
        """Put the largest logit first, and of equal ones the one that came first."""
        if not self.is_sorted:
            self.keep(np.argsort(-self.logits, kind="stable"), is_sorted=True)

    # --- other logits -------------------------------------------------------------------------------------

    def change(self, ids: np.ndarray, new: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Give some tokens other logits.

        ids:  int64, in rising order; those that are no candidates stay out.
        new:  a function of logits, float64 [m], and of their places in `ids`, that gives the logits to have.
        """
        self.cool()
        if self.ids is None:
            positions = ids[: np.searchsorted(ids, len(self))]
            places = np.arange(len(positions))
        else:
            near = np.minimum(np.searchsorted(ids, self.ids), len(ids) - 1)
            positions = np.flatnonzero(ids[near] == self.ids)
            places = near[positions]
        if len(positions):
            before = self.logits[positions].astype(np.float64)
            after = np.clip(new(before, places), -LARGEST, LARGEST)
            # What must not come stays so, whatever is added to it.
            self.put(positions, np.where(before == -math.inf, before, after))

    def put(self, positions: np.ndarray, logits: np.ndarray | float) -> None:
        """Logits at some positions; minus infinity forbids a token."""
        if not len(positions):
            return
        maxima = self.maxima if self.ids is None else None
        if not self._is_own:
            self._own()
        self.logits[positions] = logits
        self.is_sorted = False
        self._maxima = None
        if maxima is not None and len(positions) <= MANY:
            self._maxima = maxima = maxima.copy()
            groups = positions // MAXIMA_GROUP
            whole = groups[groups < len(self.logits) // MAXIMA_GROUP]
            maxima[whole] = self.logits[whole[:, None] * MAXIMA_GROUP + np.arange(MAXIMA_GROUP)].max(axis=1)
            if len(whole) < len(groups):  # the last group, which is smaller
                maxima[-1] = self.logits[(len(maxima) - 1) * MAXIMA_GROUP :].max()

    def _own(self) -> None:
        """Have logits that may be written to."""
        if self.logits.dtype == np.float32:
            own = self._scratch.floats("logits", len(self))
            np.copyto(own, self.logits)
        else:
            own = self.logits.copy()
        self.logits, self._is_own = own, True

    def forbid(self, ids: np.ndarray) -> None:
        """Some tokens must not come. ids: int64, in rising order."""
        if self.ids is None:
            self.put(ids[: np.searchsorted(ids, len(self))], -math.inf)
        else:
            self.put(np.flatnonzero(np.isin(self.ids, ids)), -math.inf)

    def allow(self, words: np.ndarray) -> None:
        """Only some tokens may come. words: uint64, a bit for each token; every word is a group of MAXIMA_GROUP.

        A group of which none may come is not looked at again. Called while all tokens are candidates.
        """
        words = words[: -(-len(self) // MAXIMA_GROUP)]
        some = np.flatnonzero(words)
        if len(some) <= len(words) // SPARSE:
            bits = np.unpackbits(words[some].view(np.uint8), bitorder="little").reshape(-1, MAXIMA_GROUP)
            rows, columns = np.nonzero(bits)
            positions = some[rows] * MAXIMA_GROUP + columns
            positions = positions[: np.searchsorted(positions, len(self))]
            if len(positions) <= len(self) // SPARSE:
                self.keep(positions)
                return
        partly = np.flatnonzero(words != ALL_BITS)
        bits = np.unpackbits(words[partly].view(np.uint8), bitorder="little").reshape(-1, MAXIMA_GROUP)
        rows, columns = np.nonzero(bits == 0)
        positions = partly[rows] * MAXIMA_GROUP + columns
        self.put(positions[: np.searchsorted(positions, len(self))], -math.inf)

    def cool(self) -> None:
        """Divide the logits by the temperature now, for who needs them as they are."""
        if self.temperature != 1:
            with np.errstate(over="ignore"):
                logits = np.clip(self.logits / np.float64(self.temperature), -LARGEST, LARGEST)
            logits[self.logits == -math.inf] = -math.inf
            self.logits, self._maxima, self._is_own, self.temperature = logits, None, True, 1.0

    def replace(self, ids: np.ndarray | None, logits: np.ndarray) -> None:
        """Other candidates in the place of these. ids: as `ids`."""
        self.ids, self.logits = ids, logits
        self._maxima, self._is_own, self.is_sorted, self.temperature = None, True, False, 1.0

    # --- one of them --------------------------------------------------------------------------------------

    def draw(self, number: Callable[[], float]) -> int:
        """The position of a token, as likely as it is. number: gives one at random, from 0 to below 1."""
        if len(self) == 1 and self.largest > -math.inf:
            return 0
        if self.ids is not None or self.temperature < COOLEST:
            return _drawn(self.weights().cumsum(), number())
        groups, weights = self._group_weights()
        sums = groups.cumsum()
        group = _drawn(sums, drawn := number())
        before = float(sums[group - 1]) if group else 0.0
        start = group * MAXIMA_GROUP
        inside = weights[start : start + MAXIMA_GROUP].cumsum(dtype=np.float64)
        return start + _drawn(inside, (drawn * float(sums[-1]) - before) / float(groups[group]))

    def _group_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums over groups, float64, and those of all tokens, float32."""
        weights = self._scratch.floats("weights", len(self))
        return self._scratch.loops.weights(self.logits, self.largest, self.temperature, weights), weights

    def _keep_reaching_of_all(self, enough: float) -> None:
        k, largest = FEW, self.largest
        while True:
            positions = _most_likely(self.logits, self.maxima, k)
            n = _n_reaching(_weights(self.logits[positions], largest, self.temperature), enough)
            if n <= len(positions) or k >= len(self):
                return self.keep(positions[:n], is_sorted=True)
            k *= 3


def _weights(logits: np.ndarray, largest: float, temperature: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # of a temperature near 0
        return np.exp((logits.astype(np.float64) - largest) / temperature)


def _drawn(cumulative: np.ndarray, number: float) -> int:
    """The position that a number from 0 to 1 falls on, never one of no weight. cumulative: sums of weights, float64."""
    total = float(cumulative[-1])
    aim = min(max(0.0, number) * total, math.nextafter(total, 0.0))
    return int(cumulative.searchsorted(aim, side="right"))


def _n_reaching(weights: np.ndarray, enough: float) -> int:
    """How many of the first weights together reach `enough`; one more than there are when all do not."""
    return int(weights.cumsum().searchsorted(enough)) + 1


def _most_likely(logits: np.ndarray, maxima: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest logits, the largest first; among equal ones the smaller positions."""
    if len(maxima) <= k:
        candidates = np.arange(len(logits))
    else:
        # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
        bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        candidates = _of_groups(np.flatnonzero(maxima >= bound), len(logits))
        candidates = candidates[logits[candidates] >= bound]
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


def _of_groups(groups: np.ndarray, n: int) -> np.ndarray:
    """Positions of all logits of some groups, of n in all."""
    positions = (groups[:, None] * MAXIMA_GROUP + np.arange(MAXIMA_GROUP)).reshape(-1)
    return positions[: np.searchsorted(positions, n)]  # the last group may be smaller
