"""What a person wants to know of each step beside the loss: means over all that it saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from edgellm.train.preference.numbers import Floats


class Figures:
    """Numbers by name, gathered from several passes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, figures: Mapping[str, Floats]) -> None:
        for name, values in figures.items():
            self._sums[name] += float(values.sum())
            self._counts[name] += len(values)

    def take(self) -> dict[str, float]:
        """The means, and begin anew. What nothing was seen of is left out."""
        means = {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name]}
        self.__init__()  # type: ignore[misc]
        return means
