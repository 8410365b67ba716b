"""Bringing JSON to its end while there is room for that.

A small model may go on with a list or a recursion for ever. When what is left of `max_tokens` or of the context is just
enough to close what is open, tokens that close come before all others that the schema allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step

if TYPE_CHECKING:
    from edgellm.text import Tokenizer

LEAST_ROOM = 32  # tokens that are kept for the end
ROOM_OF_ALL = 3  # but no more than this part of an answer
PER_BRACKET = 3  # tokens for each bracket that is open
# What brings an answer nearest to its end, first; what is none of these is in the middle.
ORDER = (b"}] \t\r\n", b'"', b"ntf", b"0123456789.+-", b",:", b"{[")
MIDDLE = 2
_PLACES = {char: place for place, chars in enumerate(ORDER) for char in chars}
_UP_TO_QUOTE = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)

_ranks: WeakKeyDictionary[Tokenizer, tuple[np.ndarray, np.ndarray]] = WeakKeyDictionary()


class Ending(Step):
    """
    n_most:  tokens that the answer may have.
    """

    def __init__(self, tokenizer: Tokenizer, n_most: int) -> None:
        self._tokenizer, self._n_most = tokenizer, n_most
        self._tokens: Sequence[int] = ()
        self._n_prompt = 0
        self._read = [Place()]  # after each token of the answer

    def copy(self) -> Ending:
        return Ending(self._tokenizer, self._n_most)

    def begin(self, tokens: Sequence[int]) -> None:
        """tokens: the whole text, as it grows."""
        self._tokens, self._n_prompt = tokens, len(tokens)

    def apply(self, candidates: Candidates) -> None:
        place = self._place()
        n_left = self._n_most - (len(self._tokens) - self._n_prompt)
        if n_left > min(LEAST_ROOM, self._n_most // ROOM_OF_ALL) + PER_BRACKET * place.depth:
            return
        ranks = ranks_of(self._tokenizer)[place.in_text]
        positions = np.flatnonzero(candidates.logits > -np.inf)
        ids = positions if candidates.ids is None else candidates.ids[positions]
        known = ids < len(ranks)
        found = np.where(known, ranks[np.where(known, ids, 0)], MIDDLE)
        if len(found):
            candidates.keep(positions[found == found.min()])

    def _place(self) -> Place:
        """Where the answer is by now. Tokens may have been taken back since."""
        answer = self._tokens[self._n_prompt :]
        del self._read[len(answer) + 1 :]
        texts = self._tokenizer.texts_of_tokens
        for token_id in answer[len(self._read) - 1 :]:
            self._read.append(self._read[-1].after(texts[token_id]))
        return self._read[-1]


class Place:
    """Where in some JSON a text ends. depth: brackets that are open; in_text: it ends inside of a string."""

    def __init__(self, depth: int = 0, in_text: bool = False, is_escaped: bool = False) -> None:
        self.depth, self.in_text, self._is_escaped = depth, in_text, is_escaped

    def after(self, text: bytes) -> Place:
        depth, in_text, is_escaped = self.depth, self.in_text, self._is_escaped
        for char in text:
            if in_text:
                in_text = is_escaped or char != ord('"')
                is_escaped = not is_escaped and char == ord("\\")
            elif char == ord('"'):
                in_text = True
            else:
                depth += (char in b"{[") - (char in b"}]")
        return Place(depth, in_text, is_escaped)


def ranks_of(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """How far each token leads from the end, uint8 by id: outside of a string, and inside of one."""
    if tokenizer not in _ranks:
        texts = tokenizer.texts_of_tokens
        ranks = [np.array([rank(text) for text in texts], np.uint8) for rank in (_outside, _inside)]
        _ranks[tokenizer] = ranks[0], ranks[1]
    return _ranks[tokenizer]


def _outside(text: bytes) -> int:
    """By the worst of its characters, up to where a string begins; nothing at all is no way to the end."""
    before, quote, _ = text.partition(b'"')
    if not text.strip():
        return len(ORDER)
    return max([_PLACES.get(char, MIDDLE) for char in before] + [1] * len(quote))


def _inside(text: bytes) -> int:
    """The quote first; what comes before it in the same token is more text."""
    closed = _UP_TO_QUOTE.match(text)
    if closed is None:
        return len(ORDER)
    rest = text[closed.end() :]
    return max(_outside(rest) if rest.strip() else 0, int(closed.end() > 1))
