"""Words, and longer stretches of texts, whose ids are remembered: most of a text has been seen before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice

MOST_REMEMBERED = 100_000  # distinct texts
MOST_CHARS = 64  # longer ones are too rare to keep

Encode = Callable[[list[str]], Iterable[tuple[str, list[int]]]]


class Remembered:
    """Texts and their ids.

    What encodes those that are not remembered is given all of them that a list has, each once, in order; and gives each
    and its ids.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[int]] = {}

    def joined(self, lists: list[list[str]], encode: Encode) -> list[list[int]]:
        """For each of some lists, the ids of all its texts in a row."""
        each = iter(self._each(list(chain.from_iterable(lists)), encode))
        return [list(chain.from_iterable(islice(each, len(texts)))) for texts in lists]

    def _each(self, texts: list[str], encode: Encode) -> Iterable[list[int]]:
        """The ids of each of some texts, in order."""
        known = self._known
        try:
            return [known[text] for text in texts]
        except KeyError:
            parts = (texts[start : start + MOST_REMEMBERED] for start in range(0, len(texts), MOST_REMEMBERED))
            return chain.from_iterable(self._learnt(part, encode) for part in parts)

    def _learnt(self, texts: list[str], encode: Encode) -> Iterable[list[int]]:
        known = self._known
        new = _lacking(known, texts)
        if len(known) + len(new) > MOST_REMEMBERED:
            known = self._known = {}  # another one, as a thread may be reading the last
            new = _lacking(known, texts)
        long: dict[str, list[int]] = {}
        for text, ids in encode(new):
            (known if len(text) <= MOST_CHARS else long)[text] = ids
        if not long:
            return map(known.__getitem__, texts)
        return [long[text] if text in long else known[text] for text in texts]


def _lacking(known: dict[str, list[int]], texts: list[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text not in known]
