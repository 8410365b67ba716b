"""What sampling does with all logits of a large vocabulary, in groups of MAXIMA_GROUP, in NumPy.

`compiled_groups` does the same by kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import (
    AIM_PEAK,
    AIM_SHARPNESS,
    AIM_WIDTH,
    AIMED,
    EVENNESS,
    GROUP_BITS,
    LARGEST,
    MOST_LIKELY,
    PROBABLE,
    REACHING,
    SIGMAS,
    WITHIN,
)

ALL_BITS = np.uint64(2**64 - 1)
COLDEST = 1e-250  # a temperature; below it differences of logits are too much for float64
COOLEST = 1e-20  # temperatures below it are too much for float32


class Row(NamedTuple):
    """Logits of all tokens.

    logits:  [n], float32 but for those that a step of one's own has made.
    words:   uint64 [n_groups], a bit for each token that may come, the lowest first; None: all may. Bits beyond the
             last token mean nothing.
    maxima:  the largest of each group, of tokens that may come; minus infinity where none may. As the logits are.
    """

    logits: np.ndarray
    words: np.ndarray | None
    maxima: np.ndarray


class Filter(NamedTuple):
    """What leaves tokens out, or gives other probabilities.

    kind, value:  MOST_LIKELY and how many; REACHING and a share, up to which the most likely are taken; WITHIN and a
                  distance from the largest logit, divided by the temperature, infinity for all; TYPICAL and a share, up
                  to which those are taken whose surprise is nearest to its mean; PROBABLE and the least probability, at
                  which the largest stays in any case; SIGMAS and how many standard deviations below the largest logit.
                  After MOST_LIKELY the largest comes first, and among equal ones the smaller position; after others
                  they are in the order they had.
                  EVENNESS and an exponent, see `temperature_of`, and AIMED and a probability, see `aimed`, come last.
    temperature:  of the probabilities that are added up.
    low, high:    temperatures.
    """

    kind: int
    value: float
    temperature: float
    low: float = 0.0
    high: float = 0.0


class Penalty(NamedTuple):
    """What tokens lose: `presence`, and `frequency` as often as each is there. repeat: see `changed`."""

    presence: float
    frequency: float
    repeat: float

    def lost(self, times: np.ndarray) -> np.ndarray:
        return self.presence + self.frequency * times


class Before(NamedTuple):
    """What was there before logits were written over.

    positions:  int64, all different. logits: at these. maxima: of the groups they are in.
    """

    positions: np.ndarray
    logits: np.ndarray
    maxima: np.ndarray

    def put_back(self, row: Row) -> None:
        row.logits[self.positions] = self.logits
        row.maxima[self.positions >> GROUP_BITS] = self.maxima


class Drawn(NamedTuple):
    """A token.

    position:  among the candidates.
    share:     its probability; that before a filter AIMED, if there was one.
    is_only:   filters have left no other.
    """

    position: int
    token_id: int
    share: float
    is_only: bool = False


Kept = tuple[np.ndarray, np.ndarray]
"""Positions, int64, and their logits."""


class Weights(NamedTuple):
    """How likely all tokens are beside the likeliest, e**x with x = (logit - largest) / temperature.

    total, products:  sums of e**x and of x e**x. n: how many tokens may come.
    """

    total: float
    products: float
    n: int

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats."""
        return max(0.0, math.log(self.total) - self.products / self.total)


def rows_of(logits: np.ndarray, words: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """The logits of some groups, [len(groups), MAXIMA_GROUP]: minus infinity for tokens that must not come.

    logits, words:  see `Row`; the last group may be smaller, and is filled up with minus infinity.
    groups:         int64, in rising order.
    """
    n_whole = len(logits) // MAXIMA_GROUP
    n = int(groups.searchsorted(n_whole))
    rows = logits[: n_whole * MAXIMA_GROUP].reshape(-1, MAXIMA_GROUP).take(groups[:n], axis=0)
    if n < len(groups):
        rest = logits[n_whole * MAXIMA_GROUP :]
        last = np.full((len(groups) - n, MAXIMA_GROUP), -np.inf, logits.dtype)
        last[:, : len(rest)] = rest
        rows = np.concatenate([rows, last])
    if words is not None:
        bits = np.unpackbits(words[groups].view(np.uint8), bitorder="little")
        rows = np.where(bits.view(bool).reshape(rows.shape), rows, rows.dtype.type(-np.inf))
    return rows


def n_groups_of(logits: np.ndarray) -> int:
    return -(-len(logits) // MAXIMA_GROUP)


class GroupLoops:
    """The loops in NumPy."""

    def largest(self, logits: np.ndarray, words: np.ndarray | None, known: np.ndarray | None) -> np.ndarray:
        """The maxima of a row. known: those of all tokens, whether they may come or not."""
        return rows_of(logits, words, np.arange(n_groups_of(logits))).max(axis=1)

    def weights(self, row: Row, temperature: float, with_products: bool = True) -> Weights:
        """There is a token that may come.

        temperature:    so large that float32 holds its inverse.
        with_products:  else, only the total is wanted.
        """
        x, weights = _all_weights(row, temperature)
        products = (weights * x).sum(dtype=np.float64)
        n = int((rows_of(row.logits, row.words, np.arange(len(row.maxima))) > -np.inf).sum())
        return Weights(float(weights.sum(axis=1).sum(dtype=np.float64)), float(products), n)

    def spread(self, row: Row) -> tuple[int, float]:
        """The number of tokens that may come, and the variance of their logits."""
        return spread_of(rows_of(row.logits, row.words, np.arange(len(row.maxima))))

    def kept(self, row: Row, filters: Sequence[Filter]) -> Kept:
        """What filters leave, the first of all tokens, every other one of what those before have left.

        None of them is EVENNESS or AIMED.
        """
        first, largest = filters[0], float(row.maxima.max())
        if largest == -math.inf:
            kept: Kept = np.empty(0, np.int64), np.empty(0, np.float32)
        elif first.kind == WITHIN:
            kept = _at_least(row, _bound(largest, first.value * first.temperature))
        elif first.kind == MOST_LIKELY:
            kept = _most_likely(row, int(first.value))
        else:
            kept = left_of(_at_least(row, -LARGEST), first, largest)
        for each in filters[1:] if len(kept[1]) else ():
            kept = left_of(kept, each, float(kept[1].max()))  # typical ones may be without the largest
        return kept

    def drawn(self, row: Row, filters: Sequence[Filter], temperature: float, number: float) -> Drawn | None:
        """The token that a number from 0 to below 1 falls on, of those that filters leave; None where none are.

        temperature:  that of the draw, which EVENNESS multiplies, and AIMED makes 1.
        """
        if filters and filters[-1].kind in (EVENNESS, AIMED):
            *filters, last = filters
        else:
            last = None
        if not filters:
            return self._drawn_of_all(row, last, temperature, number)
        positions, logits = self.kept(row, filters)
        if not len(logits):
            return None
        before = None
        if last is not None and last.kind == EVENNESS:
            temperature *= temperature_of(last, *entropy_of(logits, last.temperature))
        elif last is not None:
            before = weights_of(logits, float(logits.max()), last.temperature)
            before, temperature = before / before.sum(), 1.0
            logits = aimed(before, last.value)
        weights = weights_of(logits, float(logits.max()), temperature)
        place = drawn(sums := weights.cumsum(), number)
        share = weights[place] / sums[-1] if before is None else before[place]
        return Drawn(place, int(positions[place]), float(share), len(logits) == 1)

    def _drawn_of_all(self, row: Row, last: Filter | None, temperature: float, number: float) -> Drawn | None:
        if row.maxima.max() == -math.inf:
            return None
        if last is not None:
            weights = self.weights(row, last.temperature)
            temperature *= temperature_of(last, weights.entropy, weights.n)
        _, of_all = _all_weights(row, temperature)
        sums = of_all.sum(axis=1)
        cumulated = sums.cumsum(dtype=np.float64)
        group = drawn(cumulated, number)
        before = float(cumulated[group - 1]) if group else 0.0
        share = (number * float(cumulated[-1]) - before) / float(sums[group])
        place = drawn(of_all[group].cumsum(dtype=np.float64), share)
        token = group * MAXIMA_GROUP + place
        return Drawn(token, token, float(of_all[group, place]) / float(cumulated[-1]))

    def change(self, row: Row, positions: np.ndarray, lost: np.ndarray, repeat: float, temperature: float) -> Before:
        """Write over the logits at some different positions, see `changed`. The maxima stay true.

        Positions that the row has not are left out.
        """
        if len(positions) and positions.max() >= len(row.logits):
            there = positions < len(row.logits)
            positions, lost = positions[there], lost[there]
        before = row.logits[positions]
        row.logits[positions] = changed(before, lost, repeat, temperature)
        groups = positions >> GROUP_BITS
        largest = row.maxima[groups]
        groups = groups[(before == largest) | (row.logits[positions] > largest)]
        if len(groups):
            groups = np.sort(groups)
            row.maxima[groups] = rows_of(row.logits, row.words, groups).max(axis=1)
        return Before(positions, before, largest)

    def penalize(self, row: Row, ids: np.ndarray, penalty: Penalty, temperature: float) -> Before:
        """Write over the logits of tokens that are among some ids, see `changed`."""
        positions, times = counted(ids, len(row.logits))
        return self.change(row, positions, penalty.lost(times), penalty.repeat, temperature)

    def repeated(self, ids: np.ndarray, limit: int, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that would lengthen a repetition of the end of a text, each once, and how long it is at most, float64.

        Up to a limit; only those of an allowed length or more. ids: int64.
        """
        last = len(ids) - 1
        (ends,) = (ids[:last] == ids[last]).nonzero()
        lengths: np.ndarray = np.ones(len(ends))
        alive = np.arange(len(ends))
        for length in range(1, limit):
            alive = alive[ends[alive] >= length]
            alive = alive[ids[ends[alive] - length] == ids[last - length]]
            if not len(alive):
                break
            lengths[alive] = length + 1
        long = lengths >= allowed
        nexts, lengths = ids[ends[long] + 1], lengths[long]
        order = np.lexsort((-lengths, nexts))
        tokens, first = np.unique(nexts[order], return_index=True)
        return tokens, lengths[order][first]


IN_NUMPY = GroupLoops()


def _at_least(row: Row, bound: float) -> Kept:
    least = row.logits.dtype.type(bound)
    (groups,) = (row.maxima >= least).nonzero()
    (found,) = (rows_of(row.logits, row.words, groups) >= least).reshape(-1).nonzero()  # quicker than of rows
    positions = groups[found >> GROUP_BITS] << GROUP_BITS | found & MAXIMA_GROUP - 1
    return positions, row.logits[positions]


def _most_likely(row: Row, k: int) -> Kept:
    """The k largest, or fewer when fewer may come, in order."""
    # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
    some = row.maxima
    if k >= len(some):
        some = rows_of(row.logits, row.words, np.arange(len(some))).reshape(-1)
    bound = float(np.partition(some, len(some) - k)[len(some) - k]) if k < len(some) else -math.inf
    positions, logits = _at_least(row, max(bound, -LARGEST))
    order = (-logits).argsort(kind="stable")[:k]
    return positions[order], logits[order]


def left_of(kept: Kept, which: Filter, largest: float) -> Kept:
    """What a filter leaves of a list."""
    positions, logits = kept
    if which.kind == WITHIN:
        return _from(kept, _bound(largest, which.value * which.temperature))
    if which.kind == SIGMAS:
        return _from(kept, _bound(largest, which.value * math.sqrt(spread_of(logits)[1])))
    if which.kind == MOST_LIKELY:
        order = (-logits).argsort(kind="stable")[: int(which.value)]
        return positions[order], logits[order]
    weights = weights_of(logits, largest, which.temperature)
    total = float(weights.sum())
    if which.kind == PROBABLE:
        return _from(kept, _bound(largest, distance(which.value * total, which.temperature)))
    if which.kind == REACHING:
        return _least(kept, -logits, weights, which.value * total)
    exponents = (logits.astype(np.float64) - largest) / which.temperature
    mean = float((weights * np.where(weights > 0, exponents, 0)).sum()) / total
    return _least(kept, np.abs(exponents - mean), weights, which.value * total)


def _from(kept: Kept, bound: float) -> Kept:
    (places,) = (kept[1] >= bound).nonzero()
    return kept[0][places], kept[1][places]


def _least(kept: Kept, ranks: np.ndarray, weights: np.ndarray, enough: float) -> Kept:
    """Those of the least ranks, until their weights are enough, in the order they had."""
    order = ranks.argsort(kind="stable")
    places = np.sort(order[: n_reaching(weights[order].cumsum(), enough)])
    return kept[0][places], kept[1][places]


def _bound(largest: float, distance: float) -> float:
    return max(-LARGEST, min(largest - distance, largest))


def distance(share: float, temperature: float) -> float:
    """How far below the largest the logit is of a token that is so many times as likely."""
    return -temperature * math.log(share) if share > 0 else math.inf


def temperature_of(which: Filter, entropy: float, n: int) -> float:
    """By how even the probabilities of n tokens are; 1 where there is no choice. Never 0."""
    if n < 2:
        return 1.0
    evenness = min(1.0, max(0.0, entropy / math.log(n)))
    return max(COOLEST, which.low + (which.high - which.low) * evenness**which.value)


def entropy_of(logits: np.ndarray, temperature: float) -> tuple[float, int]:
    """That of the probabilities, in nats, and how many tokens may come."""
    largest = float(logits.max())
    weights = weights_of(logits, largest, temperature)
    exponents = np.maximum((logits - largest) / max(temperature, COLDEST), -1e4)  # of a weight of 0
    n = int(np.count_nonzero(logits > -np.inf))
    return Weights(float(np.add.reduce(weights)), float(np.add.reduce(weights * exponents)), n).entropy, n


def aimed(probabilities: np.ndarray, aim: float) -> np.ndarray:
    """Logits that are the larger the nearer probabilities are to an aim."""
    distances = np.abs(probabilities - aim) / AIM_WIDTH
    return AIM_PEAK - AIM_SHARPNESS * distances**2 / (1 + distances)


def weights_of(logits: np.ndarray, largest: float, temperature: float) -> np.ndarray:
    """How likely tokens are beside one with the largest logit, whose weight is 1: float64."""
    exponents = np.subtract(logits, largest, dtype=np.float64)
    if temperature != 1:
        exponents /= max(temperature, COLDEST)
    return np.exp(exponents, out=exponents)


def n_reaching(sums: np.ndarray, enough: float) -> int:
    """How many of the first weights together reach `enough`; one more than there are when all do not.

    sums: of the first weight, of the first two, and so on.
    """
    return int(sums.searchsorted(enough)) + 1


def _all_weights(row: Row, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """x and e**x of `Weights`, float32 [n_groups, MAXIMA_GROUP]; inside a group it is enough, and takes less time."""
    rows, largest = rows_of(row.logits, row.words, np.arange(len(row.maxima))), row.maxima.max()
    with np.errstate(over="ignore", invalid="ignore"):  # minus infinity times 0
        x = (rows.astype(np.float32) - np.float32(largest)) * np.float32(1 / temperature)
        x = np.where(x > -88, x, np.float32(-88))
    return x, np.where(x > -87.33654, np.exp(x), np.float32(0))


def within(logits: np.ndarray) -> np.ndarray:
    """What float32 can hold; `np.clip` takes longer."""
    return np.minimum(np.maximum(logits, -LARGEST), LARGEST)


def divided(logits: np.ndarray, temperature: float) -> np.ndarray:
    """float64; minus infinity stays so, and nothing else is infinite."""
    if temperature == 1:
        return logits.astype(np.float64)
    with np.errstate(over="ignore"):
        found = within(logits / np.float64(temperature))
    found[logits == -math.inf] = -math.inf
    return found


def counted(ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Different ids from 0 to n - 1 among some, in rising order, and how often each is there, float64."""
    found, times = np.unique(ids[(ids >= 0) & (ids < n)], return_counts=True)
    return found, times.astype(np.float64)


def changed(logits: np.ndarray, lost: np.ndarray, repeat: float, temperature: float) -> np.ndarray:
    """Other logits for some, float64. What must not come stays so.

    lost:         what is taken off each, float64; infinity makes it minus infinity.
    repeat:       before that, positive ones are divided by it, and others multiplied.
    temperature:  before and after that, by which all are still to be divided.
    """
    after = divided(logits, temperature)
    with np.errstate(over="ignore", invalid="ignore"):
        if repeat != 1:
            after = np.where(after > 0, after / repeat, after * repeat)
        after = within(after - lost)
        if temperature != 1:
            after = within(after * temperature)
    after[(logits == -math.inf) | (lost == math.inf)] = -math.inf
    return after


def drawn(cumulative: np.ndarray, number: float) -> int:
    """The position that a number from 0 to 1 falls on, never one of no weight. cumulative: sums of weights, float64."""
    total = float(cumulative[-1])
    aim = min(max(0.0, number) * total, math.nextafter(total, 0.0))
    return int(cumulative.searchsorted(aim, side="right"))


def spread_of(logits: np.ndarray) -> tuple[int, float]:
    """The number of logits that are more than minus infinity, and their variance."""
    numbers = logits[logits > -np.inf].astype(np.float64)
    return len(numbers), float(numbers.var()) if len(numbers) else 0.0
