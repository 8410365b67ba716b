"""Blocks of the cache: who holds each, what is known to be in it, and which goes when room is needed.

A block is named by the tokens in it and by all that come before them, as one hash: so a text that begins like another,
whoever computed that, finds its blocks. A named block that nobody holds stays until others need its room, the least
recently used first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgellm.engine.adapter_set import AdapterSet
from edgellm.errors import CacheFullError
from edgellm.kernels.records import KV_BLOCK
from edgellm.text.common import n_common

KEY_BYTES = 16  # no two texts of this world have one key


def key_after(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a whole block behind others: it stands for these tokens and all before them."""
    return hashlib.blake2b(np.array(tokens, np.int32).tobytes(), digest_size=KEY_BYTES, key=parent).digest()


class _Name(NamedTuple):
    """What is in a block. parent: the key of what comes before. key: of a whole one."""

    parent: bytes
    tokens: tuple[int, ...]
    key: bytes | None
    adapters: AdapterSet


class BlockPool:
    """The blocks of the layers that look equally far back: n_blocks in each.

    window:  positions that they look back over; None is no limit. what: all that it has, for an error.

    Who calls holds the lock of the cache.
    """

    def __init__(
        self, memory: list[np.ndarray], n_blocks: int, window: int | None = None, what: str | None = None
    ) -> None:
        self.n_blocks, self.window = n_blocks, window
        self._what = what or f"{n_blocks * KV_BLOCK} tokens of the KV cache"
        self._memory = memory
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = [0] * n_blocks
        self._names: dict[int, _Name] = {}
        self._whole: dict[bytes, set[int]] = {}  # blocks by their key
        self._behind: dict[bytes, dict[int, tuple[int, ...]]] = {}  # what comes behind a key, whole or not
        self._idle: OrderedDict[int, None] = OrderedDict()  # named and held by nobody, the least recently used first

    @property
    def n_free(self) -> int:
        """Blocks that can be had."""
        return len(self._free) + len(self._idle)

    @property
    def n_idle(self) -> int:
        """Those of them with something that is worth keeping."""
        return len(self._idle)

    def take(self) -> int:
        """A block that nobody else has, of any content. Raises CacheFullError when all are held."""
        if not self._free:
            if not self._idle:
                raise CacheFullError(f"all {self._what} are in use")
            self.unname(next(iter(self._idle)))
        block = self._free.pop()
        self._owners[block] = 1
        return block

    def share(self, block: int) -> int:
        self._owners[block] += 1
        self._idle.pop(block, None)
        return block

    def give_back(self, block: int) -> None:
        self._owners[block] -= 1
        if self._owners[block] == 0:
            if block in self._names:
                self._idle[block] = None
            else:
                self._free.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether several sequences hold a block."""
        return self._owners[block] > 1

    def is_own(self, block: int) -> bool:
        """Whether who holds a block is alone with it: nobody else holds it, or can find it."""
        return self._owners[block] == 1 and block not in self._names

    def writable(self, block: int, n_used: int) -> int:
        """A block whose tokens behind the first n_used can be written: this one, or a copy where it has more that
        others hold, or that is known and there is room to keep.
        """
        name = self._names.get(block)
        is_known = name is not None and len(name.tokens) > n_used
        if self._owners[block] > 1 or (is_known and self.n_free):
            copy = self.take()
            for memory in self._memory:
                memory[copy] = memory[block]
            self.give_back(block)
            return copy
        if name is not None and is_known:
            self.name(block, name.parent, name.tokens[:n_used], None, name.adapters)
        return block

    # --- what is in them ----------------------------------------------------------------------------------

    def name(self, block: int, parent: bytes, tokens: Sequence[int], key: bytes | None, adapters: AdapterSet) -> None:
        """Say what is in a block that somebody holds. parent, key: see `key_after`; None where it is not full."""
        self.unname(block)
        if not tokens:
            return
        name = self._names[block] = _Name(parent, tuple(tokens), key, adapters)
        self._behind.setdefault(parent, {})[block] = name.tokens
        if key is not None:
            self._whole.setdefault(key, set()).add(block)

    def unname(self, block: int) -> None:
        """Forget what is in a block."""
        name = self._names.pop(block, None)
        if name is None:
            return
        _discard(self._behind, name.parent, block)
        if name.key is not None:
            _discard(self._whole, name.key, block)
        if block in self._idle:
            del self._idle[block]
            self._free.append(block)

    def name_of(self, block: int) -> object:
        """What is known to be in a block: another object where it is something else; None where nothing is known."""
        return self._names.get(block)

    def whole(self, key: bytes) -> int | None:
        """A block by its key."""
        return next(iter(self._whole.get(key, ())), None)

    def longest_behind(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The block behind a key that begins most like some tokens, and how many of them it has."""
        best, n_best, tokens = -1, 0, tuple(tokens)
        for block, found in self._behind.get(parent, {}).items():
            if (n := n_common(found, tokens)) > n_best:
                best, n_best = block, n
        return best, n_best

    def longest_within(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The block behind a key with the most tokens, of those that have nothing but what some tokens begin with."""
        best, n_best, tokens = -1, 0, tuple(tokens)
        for block, found in self._behind.get(parent, {}).items():
            if n_best < len(found) <= len(tokens) and tokens[: len(found)] == found:
                best, n_best = block, len(found)
        return best, n_best

    def forget(self, is_meant: Callable[[AdapterSet], bool]) -> None:
        """Forget what was computed with some adapters."""
        for block in [block for block, name in self._names.items() if is_meant(name.adapters)]:
            self.unname(block)


def _discard(places: dict[bytes, set[int]] | dict[bytes, dict[int, tuple[int, ...]]], key: bytes, block: int) -> None:
    found = places[key]
    if isinstance(found, set):
        found.discard(block)
    else:
        found.pop(block, None)
    if not found:
        del places[key]
