"""The prefix cache: sequences of texts that have ended, for later texts that begin like them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edgellm.engine.adapter_set import NO_ADAPTERS, Adapter, AdapterSet
from edgellm.engine.kv_cache import Sequence

MOST_KEPT = 16  # sequences


class PrefixCache:
    """Sequences that nobody uses now. Any of them gives its blocks back when these are needed.

    One thread at a time, but for `keep`.
    """

    def __init__(self) -> None:
        self._kept: list[Sequence] = []  # most recently used last
        self._arriving: deque[Sequence] = deque()

    def keep(self, sequence: Sequence) -> None:
        """Keep a sequence until its room is needed.

        Takes no lock: a finalizer may call it at any moment, even while its own thread is at work in here.
        """
        self._arriving.append(sequence)

    def longest(
        self, token_ids: list[int], live: Iterable[Sequence] = (), adapters: AdapterSet = NO_ADAPTERS
    ) -> Sequence | None:
        """A sequence with as many of the first tokens of a text as any kept or live one has; None if none has any.

        What was computed with other adapters is another text.
        """
        self._settle()
        best, length = None, 0
        for sequence in (*live, *self._kept):
            n = common_prefix(sequence.tokens, token_ids) if sequence.adapters == adapters else 0
            if n > length:
                best, length = sequence, n
        if best is None:
            return None
        if best in self._kept:
            self._kept.remove(best)
            if length == len(best):
                return best
            self._kept.append(best)  # it has more to remember than this text
        return best.fork(length)

    def evict(self) -> bool:
        """Give back the blocks of the sequence that was used least recently; False when there is none."""
        self._settle()
        if not self._kept:
            return False
        self._kept.pop(0).release()
        return True

    def forget(self, adapter: Adapter) -> None:
        """Give back the blocks of all sequences that were computed with an adapter."""
        self._settle()
        for sequence in [sequence for sequence in self._kept if sequence.adapters.has(adapter)]:
            self._kept.remove(sequence)
            sequence.release()

    def clear(self) -> None:
        while self.evict():
            pass

    def _settle(self) -> None:
        while self._arriving:
            self._kept.append(self._arriving.popleft())
        while len(self._kept) > MOST_KEPT:
            self._kept.pop(0).release()


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many of their first tokens two texts share."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
