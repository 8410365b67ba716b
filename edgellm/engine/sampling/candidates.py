"""The tokens that may come next, and their logits: what every step works on.

A vocabulary can have a quarter of a million tokens. As long as all of them are candidates they are `AllTokens`, and
nothing is copied or sorted; once a step has left some out, there are lists of ids and logits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from edgellm.engine.sampling.all_tokens import AllTokens
from edgellm.engine.sampling.compiled_groups import MOST_FILTERS
from edgellm.engine.sampling.groups import (
    COLDEST,
    COOLEST,
    IN_NUMPY,
    Drawn,
    Filter,
    GroupLoops,
    Kept,
    Penalty,
    aimed,
    changed,
    counted,
    distance,
    divided,
    drawn,
    entropy_of,
    left_of,
    n_reaching,
    spread_of,
    temperature_of,
    weights_of,
)
from edgellm.errors import UsageError
from edgellm.kernels.sampling_records import (
    AIMED,
    EVENNESS,
    LARGEST,
    MOST_LIKELY,
    PROBABLE,
    REACHING,
    SIGMAS,
    TYPICAL,
    WITHIN,
)

MOST_LOST = 2.0**130  # by a token that may still come: more makes no difference
NOTHING = np.empty(0, np.float32)
LAST = (EVENNESS, AIMED)  # filters after which there is nothing but a draw


class Dice:
    """Random numbers from 0 to below 1; they depend on the seed alone. roll: gives the next one."""

    def __init__(self, seed: int | None) -> None:
        self._next = random.Random(seed).random
        self.roll: Callable[[], float] = self._next

    def put_back(self, number: float) -> None:
        """Where there was no choice, the last number is still the next one."""

        def again() -> float:
            self.roll = self._next
            return number

        self.roll = again


class NoTokenError(UsageError):
    """All tokens are forbidden."""


class Candidates:
    """Tokens and their logits. Steps change it in place; there always is a token that may come.

    ids:          int64 [n]; None while all tokens of the vocabulary are candidates, in the order of their ids.
    temperature:  what the logits are still to be divided by.
    is_sorted:    the largest logit comes first; among equal ones the smaller id.
    """

    def __init__(
        self,
        logits: np.ndarray,
        maxima: np.ndarray | None = None,
        loops: GroupLoops = IN_NUMPY,
        is_lent: bool = False,
    ) -> None:
        """All tokens of a vocabulary: float32 [n_vocab], and the largest of every MAXIMA_GROUP where they are known.

        loops:    what goes through all logits.
        is_lent:  steps may write over both until `give_back`.
        """
        self.temperature = 1.0
        self._ids: np.ndarray | None = None
        self._is_sorted = False
        self._filters: list[Filter] = []  # that are still to be applied to all
        self.loops = loops
        self._given = self._all = AllTokens(logits, maxima, loops, False, is_lent)
        self._some: np.ndarray = NOTHING  # logits of those in `ids`

    def give_back(self) -> None:
        """What was lent is again what it was. What was made of it is of no use any more."""
        self._given.give_back()

    @property
    def ids(self) -> np.ndarray | None:
        if self._filters:
            self._settle()
        return self._ids

    @property
    def is_sorted(self) -> bool:
        if self._filters:
            self._settle()
        return self._is_sorted

    def _settle(self) -> None:
        """Apply filters that came one after the other: together they take one look at the vocabulary."""
        filters, self._filters = self._filters, []
        last = filters.pop() if filters[-1].kind in LAST else None
        if filters:
            self.keep(*self._all.kept(filters), is_sorted=any(each.kind == MOST_LIKELY for each in filters))
        if last is not None:
            self._change_all(last)

    def _waits(self, kind: int, value: float, low: float = 0.0, high: float = 0.0) -> bool:
        """Whether a filter is noted, to be applied with those that follow; not where there is a list of candidates."""
        filters = self._filters
        if filters and (filters[-1].kind in LAST or len(filters) == MOST_FILTERS):
            self._settle()
        if self._ids is not None or self.temperature < COOLEST or (kind == AIMED and not self._filters):
            return False
        self._filters.append(Filter(kind, value, self.temperature, low, high))
        return True

    def __len__(self) -> int:
        return len(self._all if self.ids is None else self._some)

    @property
    def logits(self) -> np.ndarray:
        """float32 or float64 [n], to be read only; minus infinity is the logit of a token that must not come."""
        return self._all.logits() if self.ids is None else self._some

    @property
    def largest(self) -> float:
        """The largest logit. Raises NoTokenError when no token may come."""
        if any(each.kind in (TYPICAL, AIMED) for each in self._filters):
            self._settle()
        if self._ids is None:  # other filters leave it
            found = self._all.largest
        elif not len(self._some):
            found = -math.inf
        else:
            found = float(self._some[0] if self._is_sorted else self._some.max())
        if found == -math.inf:
            raise NoTokenError("no token may come next: all are forbidden, by logit_bias, banned_strings or a step")
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
        return weights_of(logits, self.largest, self.temperature)

    def probabilities(self) -> np.ndarray:
        """float64 [n]; their sum is 1."""
        weights = self.weights()
        return weights / weights.sum()

    def total(self) -> float:
        """The sum of all weights."""
        if not self._goes_by_groups:
            return float(np.add.reduce(self.weights()))
        assert self.largest > -math.inf
        return self._all.total(self.temperature)

    def spread(self) -> tuple[int, float]:
        """The number of tokens that may come, and the variance of their logits, whatever the temperature."""
        return self._all.spread() if self.ids is None else spread_of(self._some)

    # --- which of them stay -------------------------------------------------------------------------------

    def keep(self, positions: np.ndarray, logits: np.ndarray | None = None, is_sorted: bool = False) -> None:
        """Leave out all others. logits: theirs, where they are known."""
        ids = self.ids
        self._some = self.at(positions) if logits is None else logits
        self._ids = positions if ids is None else ids[positions]
        self._is_sorted = is_sorted

    def _keep_first(self, n: int) -> None:
        """Of sorted ones."""
        if n < len(self):
            assert self._ids is not None
            self._ids, self._some = self._ids[:n], self._some[:n]

    def keep_likeliest(self) -> None:
        """Keep the largest logit alone; among equal ones the first. Raises NoTokenError where a step left nothing."""
        if self.ids is None:
            position = self._all.likeliest()
        else:
            position = int(self._some.argmax()) if self.largest > -math.inf else 0
        self.keep(np.array([position]), is_sorted=True)

    def keep_most_likely(self, k: int) -> None:
        """Keep the k largest logits, the largest first; among equal ones the smaller ids."""
        if not self._waits(MOST_LIKELY, k):
            self.sort()
            self._keep_first(k)

    def keep_reaching(self, share: float) -> None:
        """Keep the most likely tokens until their probabilities reach `share`."""
        if not self._waits(REACHING, share):
            self.sort()
            sums = self.weights().cumsum()
            self._keep_first(n_reaching(sums, share * float(sums[-1])))

    def keep_as_likely(self, share: float) -> None:
        """Keep tokens that are at least so many times as likely as the likeliest."""
        if not self._waits(WITHIN, distance(share, 1.0)):
            self._keep_within(distance(share, self.temperature))

    def keep_probable(self, probability: float) -> None:
        """Keep tokens that are at least so probable; the likeliest stays in any case."""
        if not self._waits(PROBABLE, probability):
            self._keep_within(distance(probability * self.total(), self.temperature))

    def keep_sigmas(self, n: float) -> None:
        """Keep logits that are n standard deviations below the largest at most, whatever the temperature."""
        if not self._waits(SIGMAS, n):
            self._keep_within(n * math.sqrt(self.spread()[1]))

    def _keep_within(self, distance: float) -> None:
        """Keep logits that are so far below the largest at most; the largest stays in any case."""
        bound = self.largest - max(0.0, distance)
        if self.is_sorted:
            self._keep_first(len(self.at_least(bound)[0]))
        else:
            self.keep(*self.at_least(bound))

    def keep_typical(self, share: float) -> None:
        """Keep the tokens whose surprise is nearest to its mean, until their probabilities reach `share`."""
        if not self._waits(TYPICAL, share):
            largest, temperature = self.largest, max(self.temperature, COLDEST)
            kept = left_of((np.arange(len(self)), self.logits), Filter(TYPICAL, share, temperature), largest)
            self.keep(*kept, is_sorted=self.is_sorted)

    def at_least(self, bound: float) -> Kept:
        """The positions of logits from a bound on, in rising order, and these logits."""
        if self.ids is None:
            return self._all.at_least(bound)
        least = self._some.dtype.type(max(-LARGEST, min(bound, LARGEST)) if bound > -math.inf else bound)
        (positions,) = (self._some >= least).nonzero()
        return positions, self._some[positions]

    def sort(self) -> None:
        """Put the largest logit first, and of equal ones the one that came first."""
        if not self.is_sorted:
            self.keep(np.argsort(-self.logits, kind="stable"), is_sorted=True)

    # --- other probabilities ------------------------------------------------------------------------------

    def divide(self, temperature: float) -> None:
        """Divide all logits."""
        if self._filters and self._filters[-1].kind in LAST:
            self._settle()
        self.temperature *= temperature

    def divide_by_evenness(self, low: float, high: float, exponent: float) -> None:
        """Divide all logits by a temperature that their entropy chooses, see `temperature_of`."""
        if not self._waits(EVENNESS, exponent, low, high):
            self._change_all(Filter(EVENNESS, exponent, self.temperature, low, high))

    def aim(self, probability: float) -> np.ndarray | None:
        """Make tokens of about a probability likely, see `aimed`.

        Gives the probabilities before, float64 [n]; None if a draw that follows will tell that of its token.
        """
        if self._waits(AIMED, probability):
            return None
        return self._change_all(Filter(AIMED, probability, self.temperature))

    def _change_all(self, which: Filter) -> np.ndarray:
        assert self.largest > -math.inf
        if which.kind == AIMED:
            before = self.probabilities()
            self.replace(self.ids, np.where(self.logits > -np.inf, aimed(before, which.value), -np.inf))
            return before
        if self._goes_by_groups:
            of_all = self._all.weights(self.temperature)
            entropy, n = of_all.entropy, of_all.n
        else:
            entropy, n = entropy_of(self.logits, self.temperature)
        self.temperature *= temperature_of(which, entropy, n)
        return NOTHING

    # --- other logits -------------------------------------------------------------------------------------

    def change(self, ids: np.ndarray, lost: np.ndarray, repeat: float = 1.0) -> None:
        """Give some tokens other logits; those that are no candidates stay out.

        ids:     int64, each once.
        lost:    what is taken off each, float64; infinity forbids it.
        repeat:  before that, positive logits are divided by it, and others multiplied.
        """
        if not self._goes_by_groups:
            self.cool()
        if not len(ids):
            return
        if self.ids is None:
            self._all.change(ids, lost, repeat, self.temperature)
        else:
            order = ids.argsort()
            ids, lost = ids[order], lost[order]
            near = np.minimum(ids.searchsorted(self.ids), len(ids) - 1)
            (positions,) = (ids[near] == self.ids).nonzero()
            self._some[positions] = changed(self._some[positions], lost[near[positions]], repeat, self.temperature)
            self._is_sorted = False

    def penalize(self, ids: np.ndarray, penalty: Penalty) -> None:
        """Give the tokens that are among some ids other logits. ids: int64."""
        if self._goes_by_groups:
            self._all.penalize(ids, penalty, self.temperature)
        else:
            found, times = counted(ids, len(self._given))
            self.change(found, penalty.lost(times), penalty.repeat)

    def forbid_at(self, positions: np.ndarray) -> None:
        """Tokens at some positions must not come."""
        if self.ids is None:
            self.change(positions, np.full(len(positions), math.inf))
        else:
            self._some[positions] = -math.inf
            self._is_sorted = False

    def forbid(self, ids: np.ndarray) -> None:
        """Some tokens must not come. ids: int64, each once."""
        self.change(ids, np.full(len(ids), math.inf))

    def allow(self, words: np.ndarray) -> None:
        """Only some tokens may come. words: uint64, a bit for each token; every word is a group of MAXIMA_GROUP.

        Called while all tokens are candidates; the words must not change as long as these are used.
        """
        self._all.allow(words)

    def cool(self) -> None:
        """Divide the logits by the temperature now, for who needs them as they are."""
        if self.temperature != 1:
            is_sorted = self.is_sorted
            self.replace(self.ids, divided(self.logits, self.temperature))
            self._is_sorted = is_sorted

    def replace(self, ids: np.ndarray | None, logits: np.ndarray) -> None:
        """Other candidates in the place of these. ids: as `ids`."""
        self._filters, self._ids, self._is_sorted, self.temperature = [], ids, False, 1.0
        if ids is None:
            self._all = AllTokens(logits, None, self.loops, is_own=True)
        else:
            self._some = logits

    # --- one of them --------------------------------------------------------------------------------------

    def draw(self, dice: Dice) -> Drawn:
        """A token, as likely as it is."""
        if not self._filters and len(self) == 1 and self.largest > -math.inf:
            return Drawn(0, self.id_at(0), 1.0)
        if self.temperature >= COOLEST and (self._filters or self._ids is None):
            found = self._all.drawn(self._filters, self.temperature, number := dice.roll())
            if found is not None:
                if found.is_only and self._filters[-1].kind in LAST:
                    dice.put_back(number)
                return found
        assert self.largest > -math.inf
        weights = self.weights()
        position = drawn(sums := weights.cumsum(), dice.roll())
        return Drawn(position, self.id_at(position), float(weights[position]) / float(sums[-1]))

    @property
    def _goes_by_groups(self) -> bool:
        return self.ids is None and self.temperature >= COOLEST
