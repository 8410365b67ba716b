"""What passes over the weights take, and so how many guesses are worth being checked."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")

WEIGHT = 0.2  # of the last pass, in the average of those that had as many rows
# Before anything is known: another row takes this part of what the pass takes without it. A little too good rather
# than a little too bad, for what is tried is measured.
USUAL_ROW = 0.1
LEAST_GAIN = 1.03  # by which guessing must seem quicker than not guessing


class Pace:
    """Seconds of passes by their rows, as they were measured.

    is_measured:  False checks all guesses, whatever they cost.
    """

    def __init__(self, is_measured: bool = True) -> None:
        self.is_measured = is_measured
        self._seconds: dict[int, float] = {}
        self._rows: list[int] = []  # that were measured, in rising order

    def note(self, n_rows: int, seconds: float) -> None:
        """A pass has taken so long."""
        before = self._seconds.get(n_rows)
        if before is None:
            insort(self._rows, n_rows)
            self._seconds[n_rows] = seconds
        else:
            self._seconds[n_rows] = before + (seconds - before) * WEIGHT

    def seconds(self, n_rows: int) -> float:
        """What a pass over so many rows takes: measured, or between what its neighbours take; 1 for one row unknown."""
        if (found := self._seconds.get(n_rows)) is not None:
            return found
        if not self._rows:
            return 1 + USUAL_ROW * (n_rows - 1)
        place = bisect_left(self._rows, n_rows)
        if place == 0:  # fewer rows than were ever measured
            more = self._rows[0]
            return self._seconds[more] * (1 + USUAL_ROW * (n_rows - 1)) / (1 + USUAL_ROW * (more - 1))
        fewer = self._rows[place - 1]
        if place == len(self._rows):
            return self._seconds[fewer] * (1 + USUAL_ROW * (n_rows - 1)) / (1 + USUAL_ROW * (fewer - 1))
        more = self._rows[place]
        share = (n_rows - fewer) / (more - fewer)
        return self._seconds[fewer] + (self._seconds[more] - self._seconds[fewer]) * share

    def least_chance(self, seconds: float) -> float:
        """How likely a token must be right that takes so long to guess, so that it is worth guessing and checking."""
        if not self.is_measured:
            return 0.0
        one = self.seconds(1)
        return (seconds + (self.seconds(4) - one) / 3) / one

    def worth(self, chances: Mapping[Key, Sequence[float]], n_texts: int, most: int) -> dict[Key, int]:
        """How many guesses of each text to check in one pass, `most` together, so that most tokens come in a second.

        chances:  how likely each guess is right, if those before it are. n_texts: rows that the pass has anyway.
        """
        if not self.is_measured:
            return {key: len(some) for key, some in _limited(chances, most).items()}
        ranked: list[tuple[float, Key]] = []
        for key, some in chances.items():
            chance = 1.0
            for one in some:
                chance *= one
                ranked.append((chance, key))
        ranked.sort(key=lambda found: -found[0])  # of one text, those that come first are likelier
        ranked = ranked[:most]
        best, best_n = n_texts / self.seconds(n_texts) * LEAST_GAIN, 0
        expected = float(n_texts)
        for n, (chance, _) in enumerate(ranked, 1):
            expected += chance
            if (rate := expected / self.seconds(n_texts + n)) > best:
                best, best_n = rate, n
        counts = dict.fromkeys(chances, 0)
        for _, key in ranked[:best_n]:
            counts[key] += 1
        return counts


def _limited(chances: Mapping[Key, Sequence[float]], most: int) -> dict[Key, Sequence[float]]:
    """The same with so many together at most."""
    found = {}
    for index, (key, some) in enumerate(chances.items()):
        found[key] = some[: most // (len(chances) - index)]
        most -= len(found[key])
    return found
