r"""Patterns of a pre-tokenizer, read into a program for an automaton.

Of regular expressions there are sets of characters (`[\p{L}]`, `\s`, a letter), rows, choices (the first one that fits
goes first), greedy repeats, letters in either case (`(?i:...)`) and `(?!...)` with one set: "no character of it comes
next". What is in a set is not read here: the engine of the pattern is asked for each character.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MOST_STEPS = 400  # of a program: a pattern that repeats by large numbers is not for an automaton

_SPECIAL = "|()[]{}*+?^$."
_ESCAPES = "sSdDwWrntfv"  # sets or single characters; others (`\b`) speak of places


class NoAutomatonError(Exception):
    """A pattern with something in it that automata here do not have."""


class Step(NamedTuple):
    """One step of a program.

    kind:  CHAR, a character of a set is taken; NOT, none of a set comes next; FORK, goes on in several ways, the best
           first; END, the pattern has matched.
    set:   its place in `Program.sets`.
    to:    the steps that follow.
    """

    kind: int
    set: int
    to: tuple[int, ...]


CHAR, NOT, FORK, END = range(4)


class Program(NamedTuple):
    """A pattern in steps. sets: as they are written, each a pattern that one character matches or not."""

    steps: list[Step]
    start: int
    sets: list[str]


_Emit = Callable[[int], int]  # makes the steps of a part, which are followed by a given one; returns its first


def program_of(pattern: str) -> Program:
    """The program of a pattern. Raises NoAutomatonError."""
    return _Reader(pattern).program()


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._any_case = False
        self._sets: dict[str, int] = {}
        self._steps: list[Step] = []

    def program(self) -> Program:
        whole = self._choice()
        if self._at < len(self._pattern):
            raise NoAutomatonError(self._pattern)
        return Program(self._steps, whole(self._step(END, 0, ())), list(self._sets))

    def _step(self, kind: int, of_set: int, to: tuple[int, ...]) -> int:
        if len(self._steps) >= MOST_STEPS:
            raise NoAutomatonError(self._pattern)
        self._steps.append(Step(kind, of_set, to))
        return len(self._steps) - 1

    def _took(self, text: str) -> bool:
        """Whether this comes next, which is then behind us."""
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> _Emit:
        ways = [self._row()]
        while self._took("|"):
            ways.append(self._row())
        if len(ways) == 1:
            return ways[0]
        return lambda after: self._step(FORK, 0, tuple(way(after) for way in ways))

    def _row(self) -> _Emit:
        parts: list[_Emit] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(self._part()))

        def emit(after: int) -> int:
            for part in reversed(parts):
                after = part(after)
            return after

        return emit

    def _part(self) -> _Emit:
        if self._took("(?!"):
            of_set = self._set()
            self._close()
            return lambda after: self._step(NOT, of_set, (after,))
        if self._took("(?i:"):
            before, self._any_case = self._any_case, True
            group = self._choice()
            self._any_case = before
            self._close()
            return group
        if self._took("(?:") or self._took("("):
            group = self._choice()
            self._close()
            return group
        of_set = self._set()
        return lambda after: self._step(CHAR, of_set, (after,))

    def _close(self) -> None:
        if not self._took(")"):
            raise NoAutomatonError(self._pattern)

    def _set(self) -> int:
        """What stands for one character."""
        start, pattern = self._at, self._pattern
        char = pattern[start : start + 1]
        if char == "[":
            end = start + 1
            while end < len(pattern) and pattern[end] != "]":
                end += 2 if pattern[end] == "\\" else 1
            self._at = end + 1
        elif char == "\\":
            escaped = pattern[start + 1 : start + 2]
            if escaped.isalnum() and escaped not in _ESCAPES:
                raise NoAutomatonError(pattern)
            self._at = start + 2
        elif not char or char in _SPECIAL:
            raise NoAutomatonError(pattern)
        else:
            self._at = start + 1
        if self._at > len(pattern):
            raise NoAutomatonError(pattern)
        written = pattern[start : self._at]
        return self._sets.setdefault(f"(?i:{written})" if self._any_case else written, len(self._sets))

    def _repeated(self, part: _Emit) -> _Emit:
        least, most = self._times()
        if self._pattern[self._at : self._at + 1] in ("?", "+", "*", "{"):  # not greedy, or possessive
            raise NoAutomatonError(self._pattern)

        def emit(after: int) -> int:
            if most is None:
                around = self._step(FORK, 0, ())
                self._steps[around] = Step(FORK, 0, (part(around), after))
                after = around
            else:
                end = after
                for _ in range(most - least):
                    after = self._step(FORK, 0, (part(after), end))
            for _ in range(least):
                after = part(after)
            return after

        return emit

    def _times(self) -> tuple[int, int | None]:
        """How often the last part comes: at least, and at most."""
        for mark, times in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._took(mark):
                return times
        if not self._took("{"):
            return 1, 1
        inner, closed, _ = self._pattern[self._at :].partition("}")
        least, comma, most = inner.partition(",")
        if not closed or not least.isdecimal() or not (most.isdecimal() or (comma and not most) or not comma):
            raise NoAutomatonError(self._pattern)
        if max(int(least), int(most or 0)) > MOST_STEPS:
            raise NoAutomatonError(self._pattern)
        self._at += len(inner) + 1
        return int(least), (int(most) if most else None if comma else int(least))
