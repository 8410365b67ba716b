"""Texts to ids by kernels: cut into words by automata, and the words merged one after the other.

Ids are those of the ways in Python. Kernels are worth loading, and tables of a vocabulary worth making, only for texts
of some size (see `edgellm.text.compiled.turn`); words that a kernel leaves alone go the way in Python, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellm.kernels.registry import Kernel, find
from edgellm.kernels.word_records import CUT_WORDS, MERGE_WORDS, merge_scratch_bytes
from edgellm.text.compiled.automaton import Automaton
from edgellm.text.compiled.patterns import NoAutomatonError
from edgellm.text.compiled.tables import StringTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.kernels.store import KernelStore

    Ends = NDArray[np.int64]

InPython = Callable[[list[str]], Iterable[list[int]]]

MOST_WORDS = 1 << 16  # that are cut before they are merged
MOST_RECENT = 1 << 14  # places for words that were met
_EMPTY = np.zeros(0, np.int64)


def kernels() -> list[Kernel]:
    """What texts need to become ids."""
    return [find("cut_words"), find("index_strings"), find("merge_words")]


class Merging(NamedTuple):
    """How the words of a vocabulary are merged.

    tokens:    as the file spells them, a list or a lazy sequence.
    merges:    the same of merges, of which the last counts where one is there twice; None: two symbols are joined that
               together are a token, those of the lowest of `ranks` first.
    ranks:     int32 [n_tokens], UNRANKED for a token that no text makes; None where there are merges.
    spelling:  UTF-8 of what stands for each byte, empty for a byte that is dropped; None: symbols are characters.
    marks:     uint8 [n_tokens], WHOLE and PASSING of `edgellm.kernels.word_records`; None when no token has one.
    byte_ids:  int32 [256], the tokens that spell what is no token, or -1; None where there are none.
    """

    tokens: Any
    merges: Any = None
    ranks: NDArray[np.int32] | None = None
    spelling: list[bytes] | None = None
    marks: NDArray[np.uint8] | None = None
    byte_ids: NDArray[np.int32] | None = None


class CompiledWords:
    """Encodes texts by the merges of a vocabulary. May be used by several threads at once.

    ready:     False when the strings of the vocabulary are such that it has no tables.
    n_spaces:  in all merges.

    automata:  of the patterns that cut texts, each of which cuts what the one before left.
    store:     has loaded `kernels()`.
    """

    def __init__(self, automata: Sequence[Automaton], merging: Merging, store: KernelStore) -> None:
        self._automata = automata
        self._store = store  # the machine code lives as long as this
        self._cut, index, self._merge = map(store.function, kernels())
        self._tokens = StringTable(merging.tokens, False, index, merging.ranks)
        self._merges = self._tokens if merging.merges is None else StringTable(merging.merges, True, index)
        self.n_spaces = self._merges.n_spaces
        self.ready = self._tokens.found and self._merges.found
        self._merging = merging
        self._spelling = None
        if merging.spelling is not None:
            spelled = [len(s) << 16 | int.from_bytes(s, "little") for s in merging.spelling]
            self._spelling = np.array(spelled, np.int32)

    def encode(self, texts: list[str], in_python: InPython) -> Iterator[list[int]] | None:
        """The ids of each of some texts without lone surrogates; None when they would make an automaton too large.

        in_python:  gives the ids of each of some words: those too long for a kernel, or not left with tokens alone.
        """
        try:
            return self._encode(texts, in_python)
        except NoAutomatonError:
            return None

    def _encode(self, texts: list[str], in_python: InPython) -> Iterator[list[int]]:
        joined = "".join(texts)
        for automaton in self._automata:
            automaton.learn(joined)
        encoded = joined.encode()
        until = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))  # where each text ends
        array = np.frombuffer(encoded, np.uint8)
        if len(encoded) > len(joined):  # some characters are of several bytes
            until = np.append(np.flatnonzero(array & 0xC0 != 0x80), len(encoded))[until]
        ids: list[int] = []
        begin = 0
        all_ends: list[NDArray[np.int64]] = [_EMPTY]
        all_counts: list[NDArray[np.int64]] = [_EMPTY]
        for ends in self._words(array, until):
            if len(ends):
                some, counts = self._ids(encoded, array, begin, ends, in_python)
                ids += some
                all_ends.append(ends)
                all_counts.append(counts.astype(np.int64))
                begin = int(ends[-1])
        if len(texts) == 1:
            return iter([ids])
        n_words = np.searchsorted(np.concatenate(all_ends), until, "right")  # no word reaches from one text to the next
        bounds = np.cumsum(np.concatenate([[0], *all_counts]))[n_words].tolist()
        return (ids[first:last] for first, last in pairwise([0, *bounds]))  # lists made at once await collections

    def _words(self, text: NDArray[np.uint8], pieces: Ends) -> Iterator[Ends]:
        """Where the words of the pieces of a text end, many at a time."""
        first, *others = self._automata
        begin = 0
        for ends in self._cut_by(first, text, 0, pieces, MOST_WORDS):
            cut = ends
            for automaton in others:
                cut = np.concatenate([_EMPTY, *self._cut_by(automaton, text, begin, cut, MOST_WORDS)])
            if len(cut):
                begin = int(cut[-1])
            yield cut

    def _cut_by(
        self, automaton: Automaton, text: NDArray[np.uint8], begin: int, pieces: Ends, most: int
    ) -> Iterator[Ends]:
        """Where the words end into which an automaton cuts pieces of a text, some at a time."""
        room = min(most, len(text) - begin) + 2
        progress = np.array([0, begin, begin, 0, -1, -1], np.int64)
        record = CUT_WORDS.filled(
            {
                "text": text.ctypes.data,
                "pieces": pieces.ctypes.data,
                "n_pieces": len(pieces),
                "classes": automaton.classes.ctypes.data,
                "steps": automaton.steps.ctypes.data,
                "n_classes": automaton.steps.shape[1],
                "progress": progress.ctypes.data,
            }
        )
        piece = 0
        while piece < len(pieces):
            ends, n, state = np.empty(room, np.int64), 0, 0
            while state >= 0:  # a step was lacking
                record["ends"], record["room"] = ends[n:].ctypes.data, room - n
                self._cut(record.ctypes.data, 0, 0)
                piece, _, _, n_new, state, char_class = progress.tolist()
                n += n_new
                if state >= 0:
                    automaton.make_step(state, char_class)
            yield ends[:n]

    def _ids(
        self, encoded: bytes, text: NDArray[np.uint8], begin: int, ends: Ends, in_python: InPython
    ) -> tuple[list[int], NDArray[np.int32]]:
        """The ids of all of some words in a row, and how many each has."""
        ids = np.empty(int(ends[-1]) - begin, np.int32)
        counts = np.empty(len(ends), np.int32)
        scratch = np.empty(merge_scratch_bytes(), np.uint8)
        recent = np.zeros((min(1 << len(ends).bit_length(), MOST_RECENT), 2), np.int64)
        record = MERGE_WORDS.filled(
            {
                "text": text.ctypes.data,
                "begin": begin,
                "ends": ends.ctypes.data,
                "n_words": len(ends),
                "spelling": _address(self._spelling),
                "tokens": self._tokens.record.ctypes.data,
                "merges": self._merges.record.ctypes.data,
                "marks": _address(self._merging.marks),
                "byte_ids": _address(self._merging.byte_ids),
                "scratch": scratch.ctypes.data,
                "recent": recent.ctypes.data,
                "n_recent": len(recent),
                "ids": ids.ctypes.data,
                "counts": counts.ctypes.data,
            }
        )
        self._merge(record.ctypes.data, 0, 0)
        left = np.flatnonzero(counts < 0)
        if not len(left):
            return ids[: int(counts.sum())].tolist(), counts
        n_before = np.cumsum(np.maximum(counts, 0))
        starts = np.append(begin, ends[:-1])[left].tolist()
        words = [encoded[start:end].decode() for start, end in zip(starts, ends[left].tolist(), strict=True)]
        found: list[int] = []
        done = 0
        for place, n, its_ids in zip(left.tolist(), n_before[left].tolist(), in_python(words), strict=True):
            found += ids[done:n].tolist()
            found += its_ids
            counts[place] = len(its_ids)
            done = n
        return found + ids[done : int(n_before[-1])].tolist(), counts


def _address(array: NDArray[Any] | None) -> int:
    return 0 if array is None else array.ctypes.data
