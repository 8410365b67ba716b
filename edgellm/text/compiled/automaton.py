"""A pattern as a finite automaton that a kernel can run: one step of a table for each character.

A state is a list of places in the pattern's program where a match may be, the preferred ones first (Thompson 1968,
"Regular expression search algorithm", in the order that backtracking would try them, as Pike's sam and RE2 do). So the
match found is the one that a backtracking engine finds, but in time that grows with the text alone. States and steps
are made when a text first needs them.

Characters that are in the same sets of the pattern are one class. Which they are in, the engine of the pattern says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np

from edgellm.kernels.word_records import DEAD_STATE, NOT_MADE, START_STATE
from edgellm.text.compiled.patterns import CHAR, END, FORK, NOT, NoAutomatonError, program_of

UNKNOWN = 0  # the class of characters not met yet; that of a text's end is the next
MOST_CLASSES = 64
MOST_STATES = 1000
_N_CODES = 0x110000
_N_ASCII = 128

Engine = Callable[[str], Any]  # compiles a pattern


class Automaton:
    """The automaton of a pattern. Raises NoAutomatonError for a pattern that cannot have one.

    classes:  uint8 [0x110000], the class of each character.
    steps:    int32 [MOST_STATES, MOST_CLASSES]: `state << 1 | matched` for a state and the class of the next character,
              where `matched` says that a match ends before that character; NOT_MADE for those of no text so far.

    ascii_engine, engine:  what compiles patterns for ASCII characters, and for all others.
    """

    def __init__(self, pattern: str, ascii_engine: Engine, engine: Engine) -> None:
        self._program = program_of(pattern)
        self._engine = engine
        self.classes = np.zeros(_N_CODES, np.uint8)
        self.steps = np.full((MOST_STATES, MOST_CLASSES), NOT_MADE, np.int32)
        self._lock = threading.Lock()
        self._members: list[frozenset[int]] = [frozenset(), frozenset()]  # the sets that a class is in
        self._class_of: dict[frozenset[int], int] = {}
        self._states: list[tuple[int, ...]] = [(), (self._program.start,)]
        self._state_of = {state: number for number, state in enumerate(self._states)}
        self.steps[DEAD_STATE] = DEAD_STATE
        self._classify(list(range(_N_ASCII)), ascii_engine)
        if self._after(self._states[START_STATE], frozenset())[0]:
            raise NoAutomatonError(f"{pattern} matches nothing at all")

    def learn(self, text: str) -> None:
        """Know the class of each character of a text. Raises NoAutomatonError when there are too many classes."""
        if text.isascii():
            return
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        unknown = codes[self.classes[codes] == UNKNOWN]
        if len(unknown):
            with self._lock:
                self._classify(np.unique(unknown).tolist(), self._engine)

    def make_step(self, state: int, char_class: int) -> None:
        """Make a step of the table. Raises NoAutomatonError when there are too many states."""
        with self._lock:
            matched, following = self._after(self._states[state], self._members[char_class])
            number = self._state_of.get(following)
            if number is None:
                number = len(self._states)
                if number == MOST_STATES:
                    raise NoAutomatonError("too many states")
                self._states.append(following)
                self._state_of[following] = number
            self.steps[state, char_class] = number << 1 | matched

    def _classify(self, codes: list[int], engine: Engine) -> None:
        text = "".join(map(chr, codes))
        within = [frozenset(engine(written).findall(text)) for written in self._program.sets]
        for code, char in zip(codes, text, strict=True):
            members = frozenset(n for n, chars in enumerate(within) if char in chars)
            char_class = self._class_of.get(members)
            if char_class is None:
                char_class = len(self._members)
                if char_class == MOST_CLASSES:
                    raise NoAutomatonError("too many classes")
                self._members.append(members)
                self._class_of[members] = char_class
            self.classes[code] = char_class

    def _after(self, state: Collection[int], members: frozenset[int]) -> tuple[bool, tuple[int, ...]]:
        """Whether a match ends here, and what follows on a character that is in some sets."""
        steps = self._program.steps
        following: dict[int, None] = {}  # in order
        seen: set[int] = set()
        waiting = list(reversed(list(state)))
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            kind, of_set, to = steps[at]
            if kind == END:
                return True, tuple(following)  # what was to be tried later is not tried
            if kind == FORK:
                waiting += reversed(to)
            elif kind == NOT and of_set not in members:
                waiting += to
            elif kind == CHAR and of_set in members:
                following[to[0]] = None
        return False, tuple(following)


@cache
def automata_of(patterns: tuple[str, ...], ascii_engine: Engine, engine: Engine) -> tuple[Automaton, ...] | None:
    """The automata of a row of patterns, the same ones for all that have it; None when one cannot have any."""
    try:
        return tuple(Automaton(pattern, ascii_engine, engine) for pattern in patterns)
    except NoAutomatonError:
        return None
