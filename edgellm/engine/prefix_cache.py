"""The prefix cache: what texts have left in the KV cache, for later texts that begin like them.

Blocks are named by what is in them (see `block_pool`); the texts themselves need not be kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edgellm.engine.adapter_set import NO_ADAPTERS, Adapter, AdapterSet
from edgellm.engine.kv_cache import KVCache, Sequence


class PrefixCache:
    """What is known of texts that are being written and of those that have ended.

    One thread at a time, but for `keep`.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._arriving: deque[Sequence] = deque()

    def keep(self, sequence: Sequence) -> None:
        """Keep what a sequence has until its room is needed, and release it.

        Takes no lock: a finalizer may call it at any moment, even while its own thread is at work in here.
        """
        self._arriving.append(sequence)

    def longest(
        self, token_ids: list[int], live: Iterable[Sequence] = (), adapters: AdapterSet = NO_ADAPTERS
    ) -> Sequence:
        """A sequence with as many of the first tokens of a text as are known, of live texts too; it may be empty."""
        self.release_waiting()
        for sequence in live:
            sequence.remember(whole_blocks=False)
        return self._cache.begin(token_ids, adapters)

    def release_waiting(self) -> None:
        """Name the blocks of sequences that were kept, so that they are found, and release them."""
        while self._arriving:
            sequence = self._arriving.popleft()
            sequence.remember(whole_blocks=False)
            sequence.release()

    def forget(self, adapter: Adapter) -> None:
        """Find nothing any more that was computed with an adapter."""
        self.release_waiting()
        self._cache.forget(adapter)

    def clear(self) -> None:
        """Find nothing any more."""
        self.release_waiting()
        self._cache.forget()
