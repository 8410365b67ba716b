"""Guesses out of the text so far: what came last time after the tokens that stand at the end now.

It finds what is copied: code that is edited, documents that are quoted, names, lists, a model that repeats itself. It
costs microseconds. How often it is right depends on how many tokens agree, and on the text; both are watched, also
while its guesses are not used.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.engine.request import Request
from edgellm.engine.speculation.drafter import Guess
from edgellm.engine.speculation.pace import Pace

SIZES = (8, 3)  # tokens that agree, at least: the longer first, for it finds the better place
LONGEST = 32  # agreeing tokens beyond that are not counted
# By the number of agreeing tokens, how often guesses are right in a text of which nothing is known yet.
CHANCES = {3: 0.35, 4: 0.45, 6: 0.6, 9: 0.75, 16: 0.85, 32: 0.93}
WEIGHT = 0.15  # of the last guess, in what is known of a text
WEIGHT_FOR_ALL = 0.02  # and in what is known of all texts
LIKELIEST = 0.995
# Behind a pass over the weights, little of Python is in the caches, and looking takes longer than in a loop. So after
# so many tokens at which nothing was found, it looks at every fourth one only, until it finds something.
PATIENCE, PAUSE = 32, 4


class Lookup:
    """A drafter, for any number of texts."""

    def __init__(self) -> None:
        self._texts: dict[Request, _Text] = {}
        self._usual = dict(CHANCES)

    def guess(self, requests: Sequence[Request], most: int, pace: Pace) -> dict[Request, Guess]:
        found = {}
        for request in requests:
            text = self._texts.get(request)
            if text is None:
                text = self._texts[request] = _Text(self._usual)
            if pace.is_measured and text.rests(request.tokens):
                continue
            guess = text.guess(request.tokens, min(most, request.most_guesses))
            if guess is not None:
                found[request] = guess
        return found

    def forget(self, request: Request) -> None:
        self._texts.pop(request, None)

    def close(self) -> None:
        self._texts.clear()


class _Text:
    """Where the last of every few tokens stand in one text, and how well guesses went."""

    def __init__(self, usual: dict[int, float]) -> None:
        self._usual, self._own = usual, dict(usual)
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in SIZES]
        self._n_known = 0
        self._last: tuple[int, list[int], int] | None = None  # the last guess: at which length, and how many agreed
        self._n_vain = 0  # so often in a row it has found nothing

    def rests(self, tokens: list[int]) -> bool:
        """Whether it is not worth looking at this token."""
        return self._n_vain >= PATIENCE and len(tokens) % PAUSE != 0

    def guess(self, tokens: list[int], most: int) -> Guess | None:
        self._learn(tokens)
        place, n_agree = self._find(tokens)
        if n_agree == 0:
            self._n_vain += 1
            return None
        self._n_vain = 0
        guessed = _continued(tokens, place, max(1, most))
        self._last = (len(tokens), guessed, n_agree)
        if most < 1:
            return None
        return Guess(guessed, [self._own[_class_of(n_agree + i)] for i in range(len(guessed))])

    def _learn(self, tokens: list[int]) -> None:
        """Take in what has come since, and how good the last guess was."""
        if self._last is not None:
            start, guessed, n_agree = self._last
            self._last = None
            for i, (one, came) in enumerate(zip(guessed, tokens[start : start + len(guessed)], strict=False)):
                self._note(n_agree + i, one == came)
                if one != came:
                    break
        if len(tokens) < self._n_known:  # tokens were taken back; places of what is gone are found wrong when used
            self._n_known = len(tokens)
        for size, after in zip(SIZES, self._after, strict=True):
            # What ends with the last token has nothing behind it yet.
            for end in range(max(size, self._n_known), len(tokens)):
                after[tuple(tokens[end - size : end])] = end
        self._n_known = len(tokens)

    def _note(self, n_agree: int, is_right: bool) -> None:
        key = _class_of(n_agree)
        for chances, weight in ((self._own, WEIGHT), (self._usual, WEIGHT_FOR_ALL)):
            chances[key] = min(LIKELIEST, chances[key] + ((1.0 if is_right else 0.0) - chances[key]) * weight)

    def _find(self, tokens: list[int]) -> tuple[int, int]:
        """The place behind an earlier run of the last tokens, and how many of them agree; none agree where there is
        no such place.
        """
        n = len(tokens)
        for size, after in zip(SIZES, self._after, strict=True):
            place = after.get(tuple(tokens[n - size :])) if n >= size else None
            if place is not None and place < n:
                n_agree = 0
                while n_agree < min(LONGEST, place) and tokens[place - 1 - n_agree] == tokens[n - 1 - n_agree]:
                    n_agree += 1
                if n_agree >= size:
                    return place, n_agree
        return 0, 0


def _class_of(n_agree: int) -> int:
    """The texts' experience is kept by a few classes of agreement."""
    return max(least for least in CHANCES if least <= n_agree)


def _continued(tokens: list[int], place: int, n: int) -> list[int]:
    """The n tokens from a place on; at the end of the text it goes on with itself, for what repeats does so."""
    found = tokens[place : place + n]
    period = len(tokens) - place
    while len(found) < n:
        found.append(found[len(found) - period])
    return found
