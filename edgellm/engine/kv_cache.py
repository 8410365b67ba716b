"""The KV cache: blocks of tokens, and sequences that own or share them.

    cache = KVCache(layers, n_blocks)
    a = cache.sequence()
    a.append(ids)           # after their keys and values were computed
    b = a.fork(100)         # the first 100 tokens again, sharing every full block
    a.trim(50)
    b.release()
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from edgellm.errors import ContextOverflowError
from edgellm.kernels.records import KV_BLOCK


@dataclass(frozen=True)
class CacheLayer:
    """The keys and values that a layer keeps for a token, in float16."""

    n_kv_heads: int
    head_dim: int

    @property
    def block_bytes(self) -> int:
        return 2 * 2 * self.n_kv_heads * self.head_dim * KV_BLOCK


def blocks_for(n_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-n_tokens // KV_BLOCK)


class KVCache:
    """The memory of all sequences of a model: `n_blocks` blocks in every layer.

    The operating system gives each page as it is first written, so an unused block costs nothing; blocks
    that were used before are given out first.
    """

    def __init__(self, layers: SequenceOf[CacheLayer], n_blocks: int) -> None:
        self.layers = list(layers)
        self.n_blocks = n_blocks
        self._memory = [np.empty((n_blocks, layer.block_bytes), np.uint8) for layer in self.layers]
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = np.zeros(n_blocks, np.int32)

    @property
    def n_free_blocks(self) -> int:
        return len(self._free)

    @property
    def token_bytes(self) -> int:
        return sum(layer.block_bytes for layer in self.layers) // KV_BLOCK

    def address(self, layer: int) -> int:
        return self._memory[layer].ctypes.data

    def sequence(self) -> Sequence:
        return Sequence(self)

    def take(self) -> int:
        """A block of one's own. Raises ContextOverflowError when none is left."""
        if not self._free:
            raise ContextOverflowError(f"all {self.n_blocks * KV_BLOCK} tokens of the KV cache are in use; "
                                       "wait for another generation to end, or load with a larger n_ctx")
        block = self._free.pop()
        self._owners[block] = 1
        return block

    def share(self, block: int) -> int:
        self._owners[block] += 1
        return block

    def give_back(self, block: int) -> None:
        self._owners[block] -= 1
        if self._owners[block] == 0:
            self._free.append(block)

    def copy(self, source: int, target: int) -> None:
        for memory in self._memory:
            memory[target] = memory[source]


class Sequence:
    """The tokens of one text that are in the cache, and the blocks that hold them."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.tokens: list[int] = []
        self._blocks: list[int] = []
        self.block_table = np.zeros(8, np.int32)  # what kernels read; grows by doubling

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_blocks(self) -> int:
        return len(self._blocks)

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many more tokens. Raises ContextOverflowError when the cache is full."""
        while len(self._blocks) < blocks_for(len(self.tokens) + n_tokens):
            self._add(self.cache.take())

    def slots(self, n_tokens: int) -> np.ndarray:
        """int64 [n_tokens]: where the keys and values of the next tokens go."""
        positions = np.arange(len(self.tokens), len(self.tokens) + n_tokens)
        return self.block_table[positions // KV_BLOCK].astype(np.int64) * KV_BLOCK + positions % KV_BLOCK

    def append(self, token_ids: SequenceOf[int]) -> None:
        """Count tokens whose keys and values now are in the reserved slots."""
        self.tokens.extend(token_ids)

    def trim(self, n_tokens: int) -> None:
        """Keep the first n_tokens only."""
        del self.tokens[n_tokens:]
        while len(self._blocks) > blocks_for(n_tokens):
            self.cache.give_back(self._blocks.pop())

    def fork(self, n_tokens: int) -> Sequence:
        """Another sequence that begins with the first n_tokens of this one. Full blocks are shared, not copied."""
        other = Sequence(self.cache)
        n_full, rest = divmod(n_tokens, KV_BLOCK)
        for block in self._blocks[:n_full]:
            other._add(self.cache.share(block))
        if rest:
            other._add(self.cache.take())
            self.cache.copy(self._blocks[n_full], other._blocks[n_full])
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
