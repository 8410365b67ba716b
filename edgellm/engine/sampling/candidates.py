"""The tokens that may come next, and their logits: what every step works on.

A vocabulary can have a quarter of a million tokens. As long as all of them are candidates they are `AllTokens`, and
nothing is copied or sorted; once a step has left some out, there are lists of ids and logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgellm.engine.sampling.all_tokens import LARGEST, AllTokens
from edgellm.engine.sampling.groups import IN_NUMPY, GroupLoops, spread_of
from edgellm.errors import UsageError
from edgellm.kernels.records import MAXIMA_GROUP

FEW = 64  # tokens that are tried first, where it is not known how many are needed
COOLEST = 1e-20  # temperatures below it are too much for float32


class Candidates:
    """Tokens and their logits. Steps change it in place; there always is a token that may come.

    ids:          int64 [n]; None while all tokens of the vocabulary are candidates, in the order of their ids.
    temperature:  what the logits are still to be divided by.
    is_sorted:    the largest logit comes first; among equal ones the smaller id.
    """

    def __init__(self, logits: np.ndarray, maxima: np.ndarray | None = None, loops: GroupLoops = IN_NUMPY) -> None:
        """All tokens of a vocabulary: float32 [n_vocab], and the largest of every MAXIMA_GROUP where they are known.

        loops:  what goes through all logits.
        """
        self.ids: np.ndarray | None = None
        self.temperature = 1.0
        self.is_sorted = False
        self._loops = loops
        self._given = self._all = AllTokens(logits, maxima, loops, is_own=False)
        self._some = np.empty(0)  # logits of those in `ids`

    def borrow(self) -> None:
        """Steps may write over the logits that were given, until `give_back`."""
        self._given.borrow()

    def give_back(self) -> None:
        """The logits that were given are again what they were. What was made of them is of no use any more."""
        self._given.give_back()

    def __len__(self) -> int:
        return len(self._all if self.ids is None else self._some)

    @property
    def logits(self) -> np.ndarray:
        """float32 or float64 [n], to be read only; minus infinity is the logit of a token that must not come."""
        return self._all.logits() if self.ids is None else self._some

    @property
    def largest(self) -> float:
        """The largest logit. Raises UsageError when no token may come."""
        if not len(self):
            found = -math.inf
        elif self.is_sorted:
            found = float(self._some[0])
        else:
            found = self._all.largest if self.ids is None else float(self._some.max())
        if found == -math.inf:
            raise UsageError("no token may come next: all are forbidden, by logit_bias, banned_strings or a step")
        return found

    def id_at(self, position: int) -> int:
        return position if self.ids is None else int(self.ids[position])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The logits of candidates that may come."""
        return self._all.at(positions) if self.ids is None else self._some[positions]

    # --- how likely they are ------------------------------------------------------------------------------

    def weights(self) -> np.ndarray:
        """How likely tokens are beside the likeliest, whose weight is 1: float64 [n]."""
        return self.weights_of(self.logits)

    def weights_of(self, logits: np.ndarray) -> np.ndarray:
        """The same for some logits: float64, as many."""
        with np.errstate(over="ignore"):  # of a temperature near 0
            return np.exp((logits.astype(np.float64) - self.largest) / self.temperature)

    def probabilities(self) -> np.ndarray:
        """float64 [n]; their sum is 1."""
        weights = self.weights()
        return weights / weights.sum()

    def total(self) -> float:
        """The sum of all weights."""
        return float((self._group_weights()[1][:, 0] if self._goes_by_groups else self.weights()).sum())

    def bound(self, share: float) -> float:
        """The logit of a token that is so many times as likely as the likeliest."""
        return self.largest + self.temperature * math.log(share) if share > 0 else -math.inf

    def entropy(self) -> float:
        """Of the probabilities, in nats."""
        if self._goes_by_groups:
            total, products = self._group_weights()[1].sum(axis=0).tolist()
            return max(0.0, math.log(total) - products / total)
        p = self.probabilities()
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    def spread(self) -> tuple[int, float]:
        """The number of tokens that may come, and the variance of their logits, whatever the temperature."""
        return self._all.spread() if self.ids is None else spread_of(self._some)

    # --- which of them stay -------------------------------------------------------------------------------

    def keep(self, positions: np.ndarray, is_sorted: bool = False) -> None:
        """Leave out all others."""
        self._some = self.at(positions)
        self.ids = positions if self.ids is None else self.ids[positions]
        self.is_sorted = is_sorted

    def _keep_first(self, n: int) -> None:
        """Of sorted ones."""
        if n < len(self):
            assert self.ids is not None
            self.ids, self._some = self.ids[:n], self._some[:n]

    def keep_likeliest(self) -> None:
        """Keep the largest logit alone; among equal ones the first."""
        position = self._all.likeliest() if self.ids is None else int(np.argmax(self._some))
        self.keep(np.array([position]), is_sorted=True)

    def keep_most_likely(self, k: int) -> None:
        """Keep the k largest logits, the largest first; among equal ones the smaller ids."""
        if self.ids is None:
            self.keep(self._all.most_likely(k)[:k], is_sorted=True)
        else:
            self.sort()
            self._keep_first(k)

    def keep_reaching(self, share: float) -> None:
        """Keep the most likely tokens until their probabilities reach `share`, the largest first."""
        if self._goes_by_groups:
            self._keep_reaching_of_all(share)
            return
        self.sort()
        weights = self.weights()
        self._keep_first(_n_reaching(weights, share * weights.sum()))

    def _keep_reaching_of_all(self, share: float) -> None:
        sums = self._group_weights()[1][:, 0]
        enough, k = share * float(sums.sum()), FEW
        while True:
            positions = self._all.most_likely(k)
            n = _n_reaching(self.weights_of(self.at(positions)), enough)
            if n <= len(positions) or len(positions) < k:
                return self.keep(positions[:n], is_sorted=True)
            # The tokens that are needed are in as many groups or fewer, which then reach it too. The least number of
            # groups that do is a good guess: likely tokens are seldom in one group.
            k = 2 * k if k > FEW else max(2 * k, _n_reaching(np.sort(sums)[::-1], enough) * 9 // 8)

    def keep_at_least(self, bound: float) -> None:
        """Keep logits from a bound on; the largest stays in any case."""
        positions = self.at_least(min(bound, self.largest))
        if self.is_sorted:
            self._keep_first(len(positions))
        else:
            self.keep(positions)

    def at_least(self, bound: float) -> np.ndarray:
        """The positions of logits from a bound on, in rising order."""
        if self.ids is None:
            return self._all.at_least(bound)
        least = self._some.dtype.type(max(-LARGEST, min(bound, LARGEST)) if bound > -math.inf else bound)
        return np.flatnonzero(self._some >= least)

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
        if not self._goes_by_groups:
            self.cool()
        if self.ids is None:
            positions = ids[: np.searchsorted(ids, len(self))]
            places = np.arange(len(positions))
        else:
            near = np.minimum(np.searchsorted(ids, self.ids), len(ids) - 1)
            positions = np.flatnonzero(ids[near] == self.ids)
            places = near[positions]
        if len(positions):
            given = self.at(positions)
            after = _within(new(_divided(given, self.temperature), places))
            if self.temperature != 1:
                after = _within(after * self.temperature)
            # What must not come stays so, whatever is added to it.
            after[given == -math.inf] = -math.inf
            self.put(positions, after)

    def put(self, positions: np.ndarray, logits: np.ndarray | float) -> None:
        """Logits at some positions, in rising order; minus infinity forbids a token."""
        if not len(positions):
            return
        if self.ids is None:
            self._all.put(positions, logits)
        else:
            self._some[positions] = logits
            self.is_sorted = False

    def forbid(self, ids: np.ndarray) -> None:
        """Some tokens must not come. ids: int64, in rising order."""
        if self.ids is None:
            self.put(ids[: np.searchsorted(ids, len(self))], -math.inf)
        else:
            self.put(np.flatnonzero(np.isin(self.ids, ids)), -math.inf)

    def allow(self, words: np.ndarray) -> None:
        """Only some tokens may come. words: uint64, a bit for each token; every word is a group of MAXIMA_GROUP.

        Called while all tokens are candidates; the words must not change as long as these are used.
        """
        positions = self._all.few_of(words)
        if positions is None:
            self._all.allow(words)
        else:
            self.keep(positions)

    def cool(self) -> None:
        """Divide the logits by the temperature now, for who needs them as they are."""
        if self.temperature != 1:
            is_sorted = self.is_sorted
            self.replace(self.ids, _divided(self.logits, self.temperature))
            self.is_sorted = is_sorted

    def replace(self, ids: np.ndarray | None, logits: np.ndarray) -> None:
        """Other candidates in the place of these. ids: as `ids`."""
        self.ids, self.is_sorted, self.temperature = ids, False, 1.0
        if ids is None:
            self._all = AllTokens(logits, None, self._loops, is_own=True)
        else:
            self._some = logits

    # --- one of them --------------------------------------------------------------------------------------

    def draw(self, number: Callable[[], float]) -> int:
        """The position of a token, as likely as it is. number: gives one at random, from 0 to below 1."""
        if len(self) == 1 and self.largest > -math.inf:
            return 0
        if not self._goes_by_groups:
            return _drawn(self.weights().cumsum(), number())
        groups, parts = self._group_weights()
        sums = parts[:, 0].cumsum()
        place = _drawn(sums, drawn := number())
        before = float(sums[place - 1]) if place else 0.0
        inside = self.weights_of(self._all.row(group := int(groups[place]))).cumsum()
        return group * MAXIMA_GROUP + _drawn(inside, (drawn * float(sums[-1]) - before) / float(parts[place, 0]))

    @property
    def _goes_by_groups(self) -> bool:
        return self.ids is None and self.temperature >= COOLEST

    def _group_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """As `AllTokens.weights`. Raises UsageError when no token may come."""
        assert self.largest > -math.inf
        return self._all.weights(self.temperature)


def _divided(logits: np.ndarray, temperature: float) -> np.ndarray:
    """float64; minus infinity stays so, and nothing else is infinite."""
    if temperature == 1:
        return logits.astype(np.float64)
    with np.errstate(over="ignore"):
        divided = _within(logits / np.float64(temperature))
    divided[logits == -math.inf] = -math.inf
    return divided


def _within(logits: np.ndarray) -> np.ndarray:
    """What float32 can hold; `np.clip` takes longer."""
    return np.minimum(np.maximum(logits, -LARGEST), LARGEST)


def _drawn(cumulative: np.ndarray, number: float) -> int:
    """The position that a number from 0 to 1 falls on, never one of no weight. cumulative: sums of weights, float64."""
    total = float(cumulative[-1])
    aim = min(max(0.0, number) * total, math.nextafter(total, 0.0))
    return int(cumulative.searchsorted(aim, side="right"))


def _n_reaching(weights: np.ndarray, enough: float) -> int:
    """How many of the first weights together reach `enough`; one more than there are when all do not."""
    return int(weights.cumsum().searchsorted(enough)) + 1
