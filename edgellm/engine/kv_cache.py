"""The KV cache: blocks of tokens, and sequences that own or share them.

cache = KVCache(layers, n_blocks)
a = cache.sequence()
a.reserve(len(ids))
a.append(ids)             # after their keys and values were computed
b = a.fork(100)           # the first 100 tokens again, in the same blocks until one of the two goes on (copy on write)
a.trim(50)
b.release()
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, AdapterSet
from edgellm.errors import CacheFullError
from edgellm.graph.forks import at_fork
from edgellm.kernels.kv_types import F16_CACHE, KVType
from edgellm.kernels.records import KV_BLOCK


@dataclass(frozen=True)
class CacheLayer:
    """The keys and values that a layer keeps for a token."""

    n_kv_heads: int
    key_dim: int
    value_dim: int
    kv_type: KVType = F16_CACHE

    @property
    def block_bytes(self) -> int:
        return self.kv_type.block_bytes(self.n_kv_heads, self.key_dim, self.value_dim)


def blocks_for(n_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-n_tokens // KV_BLOCK)


class KVCache:
    """The memory of all sequences of a model: `n_blocks` blocks in every layer.

    Any thread may call, each with sequences of its own. The operating system gives each page as it is first
    written, so an unused block costs nothing; blocks that were used before are given out first.
    """

    def __init__(self, layers: SequenceOf[CacheLayer], n_blocks: int) -> None:
        self.layers = list(layers)
        self.n_blocks = n_blocks
        self._memory = [np.empty((n_blocks, layer.block_bytes), np.uint8) for layer in self.layers]
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = [0] * n_blocks
        self._lock = threading.RLock()
        at_fork(self, before=KVCache._hold, in_parent=KVCache._let_go, in_child=KVCache._let_go)

    @property
    def n_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def token_bytes(self) -> int:
        return sum(layer.block_bytes for layer in self.layers) // KV_BLOCK

    @property
    def n_bytes(self) -> int:
        """When all blocks are in use."""
        return self.n_blocks * sum(layer.block_bytes for layer in self.layers)

    def address(self, layer: int) -> int:
        return self._memory[layer].ctypes.data

    def sequence(self, adapters: AdapterSet = NO_ADAPTERS) -> Sequence:
        return Sequence(self, adapters)

    def close(self) -> None:
        """Give the memory back, whoever holds the cache still. Nothing may compute with it any more."""
        with self._lock:
            self._memory = []

    def _hold(self) -> None:
        """Nobody is in the middle of anything until `_let_go`: what a child process gets is whole."""
        self._lock.acquire()

    def _let_go(self) -> None:
        self._lock.release()

    def take(self) -> int:
        """A block that nobody else has. Raises CacheFullError when none is left."""
        with self._lock:
            if not self._free:
                raise CacheFullError(f"all {self.n_blocks * KV_BLOCK} tokens of the KV cache are in use")
            block = self._free.pop()
            self._owners[block] = 1
            return block

    def share(self, block: int) -> int:
        with self._lock:
            self._owners[block] += 1
            return block

    def give_back(self, block: int) -> None:
        with self._lock:
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether several sequences hold a block."""
        return self._owners[block] > 1

    def writable(self, block: int) -> int:
        """This block if nobody shares it, or else a copy to have in its stead (copy on write)."""
        with self._lock:
            if self._owners[block] == 1:
                return block
            copy = self.take()
            for memory in self._memory:
                memory[copy] = memory[block]
            self.give_back(block)
            return copy


class Sequence:
    """The tokens of one text that are in the cache, and the blocks that hold them.

    adapters:  what they are computed with beside the model: keys and values depend on it.
    """

    def __init__(self, cache: KVCache, adapters: AdapterSet = NO_ADAPTERS) -> None:
        self.cache = cache
        self.adapters = adapters
        self.tokens: list[int] = []
        self._blocks: list[int] = []
        self.block_table = np.zeros(8, np.int32)  # what kernels read; grows by doubling

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_blocks(self) -> int:
        return len(self._blocks)

    def can_grow(self, n_tokens: int) -> bool:
        """Whether there is room for so many more tokens now."""
        last, used = divmod(len(self.tokens), KV_BLOCK)
        n_copied = 1 if used and self.cache.is_shared(self._blocks[last]) else 0
        n_new = blocks_for(len(self.tokens) + n_tokens) - len(self._blocks)
        return n_copied + max(0, n_new) <= self.cache.n_free_blocks

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many more tokens. Raises CacheFullError when there is none; what was had stays."""
        last, used = divmod(len(self.tokens), KV_BLOCK)
        if used:
            self._blocks[last] = self.block_table[last] = self.cache.writable(self._blocks[last])
        while len(self._blocks) < blocks_for(len(self.tokens) + n_tokens):
            self._add(self.cache.take())

    def slots(self, n_tokens: int) -> list[int]:
        """Where the keys and values of the next tokens go: block * KV_BLOCK + place in the block."""
        start = len(self.tokens)
        return [self._blocks[p // KV_BLOCK] * KV_BLOCK + p % KV_BLOCK for p in range(start, start + n_tokens)]

    def append(self, token_ids: SequenceOf[int]) -> None:
        """Count tokens whose keys and values now are in the reserved slots."""
        self.tokens.extend(token_ids)

    def trim(self, n_tokens: int) -> None:
        """Keep the first n_tokens only."""
        del self.tokens[n_tokens:]
        while len(self._blocks) > blocks_for(n_tokens):
            self.cache.give_back(self._blocks.pop())

    def fork(self, n_tokens: int) -> Sequence:
        """Another sequence that begins with the first n_tokens of this one; their blocks are shared."""
        other = Sequence(self.cache, self.adapters)
        for block in self._blocks[: blocks_for(n_tokens)]:
            other._add(self.cache.share(block))
        other.tokens = self.tokens[:n_tokens]
        return other

    def release(self) -> None:
        """Give all blocks back."""
        self.trim(0)

    def _add(self, block: int) -> None:
        index = len(self._blocks)
        if index == len(self.block_table):
            self.block_table = np.concatenate([self.block_table, np.zeros_like(self.block_table)])
        self.block_table[index] = block
        self._blocks.append(block)
