"""The tokens that may come next, and their logits: what every step works on.

A vocabulary can have a quarter of a million tokens. As long as all of them are candidates, nothing is copied or sorted:
the largest of every group of 64 logits, which the program that made the logits has found, tell where to look.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP

LARGEST = float(np.finfo(np.float32).max)
FEW = 64  # tokens that are tried first, where it is not known how many are needed
COOLEST = 1e-20  # temperatures below it are too much for float32


class Candidates:
    """Tokens and their logits. Steps change it in place; there always is a token that may come.

    ids:          int64 [n]; None while all tokens of the vocabulary are candidates, in the order of their ids.
    logits:       float32 or float64 [n]; minus infinity is the logit of a token that must not come.
    temperature:  what the logits are still to be divided by.
    is_sorted:    the largest logit comes first; among equal ones the smaller id.
    """

    def __init__(self, logits: np.ndarray, maxima: np.ndarray | None = None) -> None:
        """All tokens of a vocabulary: float32 [n_vocab], and the largest of every MAXIMA_GROUP where they are known."""
        self.ids: np.ndarray | None = None
        self.logits = logits
        self.temperature = 1.0
        self.is_sorted = False
        self._maxima = maxima
        self._is_own = False  # the logits may be written to

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def maxima(self) -> np.ndarray:
        """The largest logit of every MAXIMA_GROUP candidates, while all tokens are candidates."""
        if self._maxima is None:
            self._maxima = np.maximum.reduceat(self.logits, np.arange(0, len(self.logits), MAXIMA_GROUP))
        return self._maxima

    @property
    def largest(self) -> float:
        """The largest logit. Raises UsageError when no token may come."""
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

    def keep_likeliest(self) -> None:
        """Keep the largest logit alone; among equal ones the first."""
        if self.ids is None:
            self.largest  # noqa: B018 - there must be one
            group = int(np.argmax(self.maxima))
            start = group * MAXIMA_GROUP
            position = start + int(np.argmax(self.logits[start : start + MAXIMA_GROUP]))
        else:
            position = int(np.argmax(self.logits))
        self.keep(np.array([position]), is_sorted=True)

    def keep_most_likely(self, k: int) -> None:
        """Keep the k largest logits, the largest first; among equal ones the smaller ids."""
        if self.ids is None:
            self.keep(_most_likely(self.logits, self.maxima, k), is_sorted=True)
        else:
            self.sort()
            self.keep(np.arange(min(k, len(self))), is_sorted=True)

    def keep_reaching(self, share: float) -> None:
        """Keep the most likely tokens until their probabilities reach `share`, the largest first."""
        if self.ids is None and self.temperature >= COOLEST:
            self._keep_reaching_of_all(share * self.total())
            return
        self.sort()
        weights = self.weights()
        self.keep(np.arange(min(len(self), _n_reaching(weights, share * weights.sum()))), is_sorted=True)

    def keep_at_least(self, bound: float) -> None:
        """Keep logits from a bound on; the largest stays in any case."""
        self.keep(self.at_least(min(bound, self.largest)), self.is_sorted)

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
            self.logits, self._is_own = self.logits.copy(), True
        self.logits[positions] = logits
        self.is_sorted = False
        if maxima is not None:
            groups = np.unique(positions // MAXIMA_GROUP)
            starts = groups * MAXIMA_GROUP
            self._maxima = maxima = maxima.copy()
            if len(self.logits) % MAXIMA_GROUP and groups[-1] == len(maxima) - 1:  # the last may be smaller
                maxima[-1] = self.logits[starts[-1] :].max()
                groups, starts = groups[:-1], starts[:-1]
            maxima[groups] = self.logits[starts[:, None] + np.arange(MAXIMA_GROUP)].max(axis=1)

    def forbid(self, ids: np.ndarray) -> None:
        """Some tokens must not come. ids: int64, in rising order."""
        if self.ids is None:
            self.put(ids[: np.searchsorted(ids, len(self))], -math.inf)
        else:
            self.put(np.flatnonzero(np.isin(self.ids, ids)), -math.inf)

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
        self.largest  # noqa: B018 - there must be one
        if len(self) == 1:
            return 0
        if self.ids is not None or self.temperature < COOLEST:
            return _drawn(self.weights(), number())[0]
        groups, weights = self._group_weights()
        group, rest = _drawn(groups, number())
        start = group * MAXIMA_GROUP
        return start + _drawn(weights[start : start + MAXIMA_GROUP], rest)[0]

    def _group_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all tokens, and sums over groups, float64. A part of what `weights` takes, for float32 is enough here."""
        with np.errstate(over="ignore"):
            weights = np.subtract(self.logits, np.float32(self.largest), dtype=np.float32)
            if self.temperature != 1:
                np.multiply(weights, np.float32(1 / self.temperature), out=weights)
        np.exp(weights, out=weights)
        n = len(weights) // MAXIMA_GROUP * MAXIMA_GROUP
        sums = weights[:n].reshape(-1, MAXIMA_GROUP).sum(axis=1).astype(np.float64)
        return (np.append(sums, weights[n:].sum()) if n < len(weights) else sums), weights

    def _keep_reaching_of_all(self, enough: float) -> None:
        k, largest = FEW, self.largest
        while True:
            positions = _most_likely(self.logits, self.maxima, k)
            n = _n_reaching(_weights(self.logits[positions], largest, self.temperature), enough)
            if n <= len(positions) or k >= len(self):
                return self.keep(positions[:n], is_sorted=True)
            k *= 8


def _weights(logits: np.ndarray, largest: float, temperature: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # of a temperature near 0
        return np.exp((logits.astype(np.float64) - largest) / temperature)


def _drawn(weights: np.ndarray, number: float) -> tuple[int, float]:
    """The position that a number from 0 to 1 falls on, and where in it, from 0 to 1. Never one of no weight."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    total = cumulative[-1]
    aim = min(number * total, np.nextafter(total, 0))
    position = int(np.searchsorted(cumulative, aim, side="right"))
    before = cumulative[position - 1] if position else 0.0
    return position, float((aim - before) / (cumulative[position] - before))


def _n_reaching(weights: np.ndarray, enough: float) -> int:
    """How many of the first weights together reach `enough`; one more than there are when all do not."""
    return int(np.searchsorted(np.cumsum(weights), enough)) + 1


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
