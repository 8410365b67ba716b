"""The blocks of one sequence in one pool, in the order of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.engine.block_pool import BlockPool
from edgellm.graph.batch import AddressedArray
from edgellm.kernels.records import KV_BLOCK

KEPT_BEHIND = KV_BLOCK  # tokens that are kept before a window, for who takes back some
GONE = -1  # a block that no window reaches any more


def blocks_for(n_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-n_tokens // KV_BLOCK)


def first_needed(window: int | None, n_tokens: int) -> int:
    """The first block that the token behind n_tokens looks back on."""
    return 0 if window is None else max(0, n_tokens - window + 1) // KV_BLOCK


class BlockTable:
    """The blocks of a sequence in one pool; GONE stands for those that its window has left behind.

    kernel_array:  int32, what kernels read; it grows by doubling.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.n_gone = 0
        self.kernel_array = AddressedArray(np.zeros(8, np.int32))

    def first_needed(self, n_tokens: int) -> int:
        return first_needed(self.pool.window, n_tokens)

    def reaches(self, n_tokens: int) -> bool:
        """Whether all is there that the token behind n_tokens looks back on."""
        return self.n_gone <= self.first_needed(n_tokens) or self.first_needed(n_tokens) == blocks_for(n_tokens)

    def extend(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            index = len(self.blocks)
            array = self.kernel_array.array
            if index == len(array):
                array = np.concatenate([array, np.zeros_like(array)])
                self.kernel_array.replace(array)
            array[index] = max(block, 0)
            self.blocks.append(block)
            self.n_gone += block == GONE

    def n_wanted(self, n_tokens: int, n_more: int) -> int:
        """Blocks to be had before n_more tokens can be written."""
        last, used = divmod(n_tokens, KV_BLOCK)
        n_copied = 1 if used and self.pool.is_shared(self.blocks[last]) else 0
        return n_copied + max(0, blocks_for(n_tokens + n_more) - len(self.blocks))

    def has_room(self, n_tokens: int, n_more: int) -> bool:
        """Whether n_more tokens can be written into the last block, as it is; most tokens of an answer can."""
        last, used = divmod(n_tokens, KV_BLOCK)
        return 0 < used <= KV_BLOCK - n_more and self.pool.is_own(self.blocks[last])

    def reserve(self, n_tokens: int, n_more: int) -> None:
        last, used = divmod(n_tokens, KV_BLOCK)
        if used:
            self.blocks[last] = self.kernel_array.array[last] = self.pool.writable(self.blocks[last], used)
        while len(self.blocks) < blocks_for(n_tokens + n_more):
            self.extend([self.pool.take()])

    def shorten(self, n_blocks: int) -> None:
        """Give back all blocks behind the first n_blocks, the last first: it is the first to be forgotten."""
        while len(self.blocks) > n_blocks:
            block = self.blocks.pop()
            if block == GONE:
                self.n_gone -= 1
            else:
                self.pool.give_back(block)

    def leave_behind(self, n_tokens: int) -> None:
        """Give back what no window reaches any more."""
        end = min(self.first_needed(n_tokens - KEPT_BEHIND), len(self.blocks))
        for index in range(self.n_gone, end):
            self.pool.give_back(self.blocks[index])
            self.blocks[index] = GONE
            self.n_gone += 1
