"""The KV cache: blocks of tokens, and sequences that own or share them.

cache = KVCache(layers, n_blocks)
a = cache.sequence()
a.reserve(len(ids))
a.append(ids)             # after their keys and values were computed
a.remember()              # from now on, texts that begin like it find it
b = cache.begin(other)    # with as many of the first tokens of `other` as are known, in the same blocks until one of
                          # the two goes on (copy on write)
a.trim(50)
b.release()

Layers that look back over a window keep no more than it: they have blocks of their own, and a sequence has a table of
blocks for each kind of window.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, Adapter, AdapterSet
from edgellm.engine.block_pool import KEY_BYTES, BlockPool, key_after
from edgellm.errors import CacheFullError
from edgellm.graph.forks import at_fork
from edgellm.kernels.kv_types import F16_CACHE, KVType
from edgellm.kernels.records import KV_BLOCK

KEPT_BEHIND = KV_BLOCK  # tokens that are kept before a window, for who takes back some
GONE = -1  # a block that no window reaches any more


class CacheLayer(NamedTuple):
    """The keys and values that a layer keeps for a token; window: of how many, None is of all."""

    n_kv_heads: int
    key_dim: int
    value_dim: int
    kv_type: KVType = F16_CACHE
    window: int | None = None

    @property
    def block_bytes(self) -> int:
        return self.kv_type.block_bytes(self.n_kv_heads, self.key_dim, self.value_dim)


def blocks_for(n_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-n_tokens // KV_BLOCK)


def blocks_of_text(window: int | None, n_ctx: int, n_batch: int) -> int:
    """Blocks that a pool should have for every text of n_ctx tokens that the cache has room for.

    A window slides over no more than a batch at a time. The pool has twice what it takes for that: texts that are
    shorter than the window are more than those of n_ctx tokens.
    """
    whole = blocks_for(n_ctx) + 1
    return whole if window is None else min(whole, 2 * (blocks_for(window + KEPT_BEHIND + n_batch) + 1))


def bytes_of_texts(layers: SequenceOf[CacheLayer], n_texts: int, n_tokens: int, n_batch: int) -> int:
    """The most that so many texts of n_tokens each take at a time, while they are computed n_batch tokens at a time."""

    def blocks(window: int | None) -> int:
        whole = n_texts * blocks_for(n_tokens)
        if window is None:
            return whole
        # What a window reaches and what is kept behind it, with a block that either begins in; and the batch before it.
        return min(whole, n_texts * (blocks_for(window + KEPT_BEHIND) + 1) + blocks_for(n_batch))

    return sum(blocks(layer.window) * layer.block_bytes for layer in layers)


class KVCache:
    """The memory of all sequences of a model: blocks in every layer.

    n_blocks:  of each layer, or by the windows of layers.

    Any thread may call, each with sequences of its own. The operating system gives each page as it is first
    written, so an unused block costs nothing; blocks that were used before are given out first.
    """

    def __init__(self, layers: SequenceOf[CacheLayer], n_blocks: int | Mapping[int | None, int]) -> None:
        self.layers = list(layers)
        windows = list(dict.fromkeys(layer.window for layer in self.layers)) or [None]
        counts = {window: n_blocks if isinstance(n_blocks, int) else n_blocks[window] for window in windows}
        self.memory = [np.empty((counts[layer.window], layer.block_bytes), np.uint8) for layer in self.layers]
        self.pools = [BlockPool(self._memory_of(window), counts[window], window) for window in windows]
        self.lock = threading.RLock()
        at_fork(self, before=KVCache._hold, in_parent=KVCache._let_go, in_child=KVCache._let_go)

    def _memory_of(self, window: int | None) -> list[np.ndarray]:
        return [memory for layer, memory in zip(self.layers, self.memory, strict=True) if layer.window == window]

    @property
    def n_blocks(self) -> int:
        """Blocks of all kinds."""
        return sum(pool.n_blocks for pool in self.pools)

    @property
    def n_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return sum(pool.n_free for pool in self.pools)

    @property
    def token_bytes(self) -> int:
        """Of a token in all layers."""
        return sum(layer.block_bytes for layer in self.layers) // KV_BLOCK

    @property
    def n_bytes(self) -> int:
        """When all blocks are in use."""
        return self.n_blocks * sum(layer.block_bytes for layer in self.layers)

    def address(self, layer: int) -> int:
        return self.memory[layer].ctypes.data

    def sequence(self, adapters: AdapterSet = NO_ADAPTERS) -> Sequence:
        return Sequence(self, adapters)

    def close(self) -> None:
        """Give the memory back, whoever holds the cache still. Nothing may compute with it any more."""
        with self.lock:
            self.memory.clear()
            for pool in self.pools:
                pool._memory.clear()

    def _hold(self) -> None:
        """Nobody is in the middle of anything until `_let_go`: what a child process gets is whole."""
        self.lock.acquire()

    def _let_go(self) -> None:
        self.lock.release()

    # --- what is known of texts that were computed ----------------------------------------------------------

    def begin(self, token_ids: SequenceOf[int], adapters: AdapterSet = NO_ADAPTERS) -> Sequence:
        """A sequence with as many of the first tokens of a text as are known; none, where none are.

        What was computed with other adapters is another text.
        """
        sequence = Sequence(self, adapters)
        keys = sequence.keys
        with self.lock:
            for start in range(0, len(token_ids) - KV_BLOCK + 1, KV_BLOCK):
                key = key_after(keys[-1], token_ids[start : start + KV_BLOCK])
                if any(pool.window is None and pool.whole(key) is None for pool in self.pools):
                    break
                keys.append(key)
            while True:
                n_whole = len(keys) - 1
                rest = token_ids[n_whole * KV_BLOCK : (n_whole + 1) * KV_BLOCK]
                tails = [pool.longest_behind(keys[-1], rest) for pool in self.pools]
                n_tail = min(n for _, n in tails)
                n_tokens = n_whole * KV_BLOCK + n_tail
                if all(self._has_window(pool, keys, n_tokens) for pool in self.pools):
                    break
                keys.pop()
            for table, (tail, _) in zip(sequence.tables, tails, strict=True):
                pool = table.pool
                first = min(n_whole, table.first_needed(n_tokens))
                blocks = [pool.whole(key) for key in keys[first + 1 :]]
                table.extend([GONE] * first)
                table.extend([pool.share(block) for block in blocks if block is not None])
                if n_tail:
                    table.extend([pool.share(tail)])
            sequence.tokens = list(token_ids[:n_tokens])
        return sequence

    def _has_window(self, pool: BlockPool, keys: list[bytes], n_tokens: int) -> bool:
        """Whether a pool has the whole blocks that the token behind n_tokens looks back on."""
        first = _first_needed(pool.window, n_tokens)
        return all(pool.whole(key) is not None for key in keys[first + 1 :])

    def put(
        self,
        keys: SequenceOf[bytes],
        token_ids: SequenceOf[int],
        start: int,
        runs: SequenceOf[tuple[int, int]],
        layers: SequenceOf[np.ndarray],
        adapters: AdapterSet,
    ) -> None:
        """Let whole blocks be found that were computed before.

        keys:    before the first of them, and behind each. start: which block of the text the first of them is.
        runs:    for each pool, the first block that is there, and how many are.
        layers:  uint8 [n, block_bytes] of each layer. Raises CacheFullError when others hold too much.
        """
        with self.lock:
            for pool, (first, n) in zip(self.pools, runs, strict=True):
                own = [i for i, layer in enumerate(self.layers) if layer.window == pool.window]
                for index in range(n):
                    at = first - start + index
                    if pool.whole(keys[at + 1]) is not None:
                        continue
                    block = pool.take()
                    for i in own:
                        self.memory[i][block] = layers[i][index]
                    tokens = token_ids[at * KV_BLOCK : (at + 1) * KV_BLOCK]
                    pool.name(block, keys[at], tokens, keys[at + 1], adapters)
                    pool.give_back(block)

    def restored(
        self,
        token_ids: list[int],
        firsts: SequenceOf[int],
        layers: SequenceOf[np.ndarray],
        adapters: AdapterSet = NO_ADAPTERS,
    ) -> Sequence:
        """A sequence of a text that was computed before, from its beginning.

        firsts:  for each pool, the first block that is there. layers: uint8 [n, block_bytes] of each layer, the blocks
                 from there on. Raises CacheFullError when others hold too much.
        """
        sequence = Sequence(self, adapters)
        for table, first in zip(sequence.tables, firsts, strict=True):
            table.extend([GONE] * first)
        try:
            sequence.reserve(len(token_ids))
        except CacheFullError:
            sequence.release()
            raise
        for layer, memory, blocks in zip(self.layers, self.memory, layers, strict=True):
            index = next(i for i, pool in enumerate(self.pools) if pool.window == layer.window)
            memory[sequence.tables[index].blocks[firsts[index] :]] = blocks
        sequence.append(token_ids)
        return sequence

    def forget(self, adapter: Adapter | None = None) -> None:
        """Find nothing any more of what was computed with an adapter, or of anything."""
        with self.lock:
            for pool in self.pools:
                pool.forget(lambda adapters: adapter is None or adapters.has(adapter))


def _first_needed(window: int | None, n_tokens: int) -> int:
    """The first block that the token behind n_tokens looks back on."""
    return 0 if window is None else max(0, n_tokens - window + 1) // KV_BLOCK


class BlockTable:
    """The blocks of a sequence in one pool; GONE stands for those that its window has left behind.

    array:  int32, what kernels read; it grows by doubling.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.n_gone = 0
        self.array = np.zeros(8, np.int32)

    def first_needed(self, n_tokens: int) -> int:
        return _first_needed(self.pool.window, n_tokens)

    def extend(self, blocks: SequenceOf[int]) -> None:
        for block in blocks:
            index = len(self.blocks)
            if index == len(self.array):
                self.array = np.concatenate([self.array, np.zeros_like(self.array)])
            self.array[index] = max(block, 0)
            self.blocks.append(block)
            self.n_gone += block == GONE

    def n_wanted(self, n_tokens: int, n_more: int) -> int:
        """Blocks to be had before n_more tokens can be written."""
        last, used = divmod(n_tokens, KV_BLOCK)
        n_copied = 1 if used and self.pool.is_shared(self.blocks[last]) else 0
        return n_copied + max(0, blocks_for(n_tokens + n_more) - len(self.blocks))

    def reserve(self, n_tokens: int, n_more: int) -> None:
        last, used = divmod(n_tokens, KV_BLOCK)
        if used:
            self.blocks[last] = self.array[last] = self.pool.writable(self.blocks[last], used)
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


class Sequence:
    """The tokens of one text that are in the cache, and the blocks that hold them.

    adapters:  what they are computed with beside the model: keys and values depend on it.
    tables:    its blocks, for each pool of the cache.
    keys:      of what comes before its blocks, as far as they were remembered.
    """

    def __init__(self, cache: KVCache, adapters: AdapterSet = NO_ADAPTERS) -> None:
        self.cache = cache
        self.adapters = adapters
        self.tokens: list[int] = []
        self.tables = [BlockTable(pool) for pool in cache.pools]
        self.keys = [root_of(adapters)]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_blocks(self) -> int:
        return sum(len(table.blocks) - table.n_gone for table in self.tables)

    @property
    def n_bytes(self) -> int:
        """Of its blocks in all layers."""
        n_held = {table.pool.window: len(table.blocks) - table.n_gone for table in self.tables}
        return sum(n_held[layer.window] * layer.block_bytes for layer in self.cache.layers)

    @property
    def block_tables(self) -> dict[int | None, np.ndarray]:
        """What kernels read, int32, by window."""
        return {table.pool.window: table.array for table in self.tables}

    def can_grow(self, n_tokens: int) -> bool:
        """Whether there is room for so many more tokens now."""
        n = len(self.tokens)
        return all(table.n_wanted(n, n_tokens) <= table.pool.n_free for table in self.tables)

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many more tokens. Raises CacheFullError when there is none; what was had stays."""
        with self.cache.lock:
            for table in self.tables:
                table.reserve(len(self.tokens), n_tokens)

    def slots(self, n_tokens: int) -> dict[int | None, list[int]]:
        """Where the keys and values of the next tokens go, by window: block * KV_BLOCK + place in the block."""
        start = len(self.tokens)
        places = [divmod(p, KV_BLOCK) for p in range(start, start + n_tokens)]
        return {t.pool.window: [t.blocks[block] * KV_BLOCK + place for block, place in places] for t in self.tables}

    def append(self, token_ids: SequenceOf[int]) -> None:
        """Count tokens whose keys and values now are in the reserved slots."""
        self.tokens.extend(token_ids)

    def leave_behind(self) -> None:
        """Give back what windows do not reach any more: who trims this by more than a few tokens then loses it all."""
        if any(table.pool.window is not None for table in self.tables):
            with self.cache.lock:
                for table in self.tables:
                    table.leave_behind(len(self.tokens))

    def remember(self, whole_blocks: bool = True) -> None:
        """Let texts that begin like this one find what is in the cache of it.

        whole_blocks:  no more than those; otherwise also the last one, which is not full.
        """
        n_whole = len(self.tokens) // KV_BLOCK
        if whole_blocks and len(self.keys) > n_whole:
            return
        with self.cache.lock:
            while len(self.keys) <= n_whole:
                index = len(self.keys) - 1
                tokens = self.tokens[index * KV_BLOCK : (index + 1) * KV_BLOCK]
                self.keys.append(key_after(self.keys[-1], tokens))
                self._name(index, tokens, self.keys[-1])
            if not whole_blocks and (tail := self.tokens[n_whole * KV_BLOCK :]):
                self._name(n_whole, tail, None)

    def _name(self, index: int, tokens: list[int], key: bytes | None) -> None:
        for table in self.tables:
            if (block := table.blocks[index]) != GONE and not table.pool.is_shared(block):
                table.pool.name(block, self.keys[index], tokens, key, self.adapters)

    def trim(self, n_tokens: int) -> None:
        """Keep the first n_tokens only. Where a window has left behind what they need, nothing is kept."""
        if any(table.n_gone > table.first_needed(n_tokens) for table in self.tables):
            n_tokens = 0
        del self.tokens[n_tokens:]
        del self.keys[n_tokens // KV_BLOCK + 1 :]
        with self.cache.lock:
            for table in self.tables:
                table.shorten(blocks_for(n_tokens))

    def fork(self, n_tokens: int) -> Sequence:
        """Another sequence that begins with the first n_tokens of this one; their blocks are shared.

        Where a window has left behind what they need, it is empty.
        """
        other = Sequence(self.cache, self.adapters)
        if any(table.n_gone > table.first_needed(n_tokens) for table in self.tables):
            return other
        with self.cache.lock:
            for table, own in zip(other.tables, self.tables, strict=True):
                blocks = own.blocks[: blocks_for(n_tokens)]
                table.extend([block if block == GONE else own.pool.share(block) for block in blocks])
        other.tokens = self.tokens[:n_tokens]
        other.keys = self.keys[: n_tokens // KV_BLOCK + 1]
        return other

    def release(self) -> None:
        """Give all blocks back."""
        self.trim(0)


def root_of(adapters: AdapterSet) -> bytes:
    """The key of what comes before a text: what it is computed with beside the model."""
    uses = repr([(adapter.digest, scale) for adapter, scale in adapters.uses])
    return hashlib.blake2b(uses.encode(), digest_size=KEY_BYTES).digest()
