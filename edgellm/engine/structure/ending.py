"""Bringing JSON to its end while there is room for that.

A small model may go on with a list or a recursion for ever. When what is left of `max_tokens` or of the context is just
enough to close what is open, tokens that close come before all others that the schema allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.engine.sampling.candidates import Candidates
from edgellm.engine.sampling.step import Step

LEAST_ROOM = 32  # tokens that are kept for the end
ROOM_OF_ALL = 4  # but no more than this part of an answer
PER_BRACKET = 3  # tokens for each bracket that is open
# What brings an answer nearest to its end, first; what is none of these is in the middle.
ORDER = ("}]", '"', "ntf", "0123456789.+-", ",:", "{[")
MIDDLE = 2


class Ending(Step):
    """
    token_bytes:  what each token is, by its id.
    n_most:       tokens that the answer may have.
    """

    def __init__(self, token_bytes: Sequence[bytes], n_most: int) -> None:
        self._bytes, self._n_most = token_bytes, n_most
        self._tokens: Sequence[int] = ()
        self._n_prompt = 0
        self._ranks: np.ndarray | None = None

    def copy(self) -> Ending:
        return Ending(self._bytes, self._n_most)

    def begin(self, tokens: Sequence[int]) -> None:
        """tokens: the whole text, as it grows."""
        self._tokens, self._n_prompt = tokens, len(tokens)

    def apply(self, candidates: Candidates) -> None:
        n_left = self._n_most - (len(self._tokens) - self._n_prompt)
        room = min(LEAST_ROOM, self._n_most // ROOM_OF_ALL)
        if n_left > room + PER_BRACKET * self._n_most // ROOM_OF_ALL:
            return  # not even all that could be open
        if n_left > room + PER_BRACKET * _n_open(b"".join(self._bytes[i] for i in self._tokens[self._n_prompt :])):
            return
        if self._ranks is None:
            self._ranks = np.array([_rank(text) for text in self._bytes], np.uint8)
        positions = np.flatnonzero(candidates.logits > -np.inf)
        ids = positions if candidates.ids is None else candidates.ids[positions]
        ids_in = ids < len(self._ranks)
        ranks = np.where(ids_in, self._ranks[np.where(ids_in, ids, 0)], MIDDLE)
        if len(ranks):
            candidates.keep(positions[ranks == ranks.min()])


def _rank(text: bytes) -> int:
    first = text.lstrip()[:1].decode("latin-1")
    return next((rank for rank, chars in enumerate(ORDER) if first and first in chars), MIDDLE)


def _n_open(text: bytes) -> int:
    """Brackets of JSON that are open at the end of a text."""
    depth, in_text, escaped = 0, False, False
    for char in text:
        if in_text:
            in_text = escaped or char != ord('"')
            escaped = not escaped and char == ord("\\")
        elif char == ord('"'):
            in_text = True
        else:
            depth += (char in b"{[") - (char in b"}]")
    return depth
