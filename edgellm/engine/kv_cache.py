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
blocks for each kind of window. States of recurrent layers stand beside the blocks, see `states`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import numpy as np

from edgellm.engine.adapter_set import NO_ADAPTERS, Adapter, AdapterSet
from edgellm.engine.block_pool import KEY_BYTES, BlockPool, key_after
from edgellm.engine.block_table import GONE, BlockTable, blocks_for, first_needed
from edgellm.engine.states import NO_STATES, NOTHING, StatePool, StateShape, Step, Trail
from edgellm.errors import CacheFullError
from edgellm.graph.cache_memory import CacheLayer, CacheMemory
from edgellm.graph.forks import at_fork
from edgellm.kernels.kv_types import RECENT
from edgellm.kernels.records import KV_BLOCK

State = tuple[int, SequenceOf[np.ndarray]]  # how many tokens of a text it is of, and the bytes of each layer


class KVCache:
    """The memory of all sequences of a model: blocks in every layer.

    n_blocks:  of each layer, or by the windows of layers.
    states:    of recurrent layers, and n_slots for them.

    Any thread may call, each with sequences of its own. The operating system gives each page as it is first
    written, so an unused block costs nothing; blocks that were used before are given out first.
    """

    def __init__(
        self,
        layers: SequenceOf[CacheLayer],
        n_blocks: int | Mapping[int | None, int],
        states: StateShape = NO_STATES,
        n_slots: int = 0,
    ) -> None:
        self.layers = list(layers)
        windows = list(dict.fromkeys(layer.window for layer in self.layers)) or [None]
        counts = {window: n_blocks if isinstance(n_blocks, int) else n_blocks[window] for window in windows}
        self._memory = CacheMemory(self.layers, counts)
        self.pools = [BlockPool([self._memory.of_window[window]], counts[window], window) for window in windows]
        self.states = StatePool(states, n_slots) if states.layer_bytes else None
        self.lock = threading.RLock()
        at_fork(self, before=KVCache._hold, in_parent=KVCache._end_hold, in_child=KVCache._end_hold)

    @property
    def memory(self) -> list[np.ndarray]:
        """uint8 [n_blocks, block_bytes] of each layer."""
        return self._memory.of_layer

    @property
    def n_blocks(self) -> int:
        """Blocks of all kinds."""
        return sum(pool.n_blocks for pool in self.pools)

    @property
    def n_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return sum(pool.n_free for pool in self.pools)

    def blocks_of_layers(self) -> list[tuple[CacheLayer, int]]:
        """Each layer with the number of blocks that it has."""
        n_blocks = {pool.window: pool.n_blocks for pool in self.pools}
        return [(layer, n_blocks[layer.window]) for layer in self.layers]

    @property
    def token_bytes(self) -> int:
        """Of a token in all layers, when its block is full."""
        return sum(layer.block_bytes for layer in self.layers if layer.window != RECENT) // KV_BLOCK

    @property
    def n_bytes(self) -> int:
        """When all blocks are in use, and all states."""
        return sum(memory.nbytes for memory in self._all_memory())

    def _all_memory(self) -> list[np.ndarray]:
        return [*self.memory, *(self.states.memory if self.states else ())]

    def tables(self) -> dict[str, int]:
        """Where layers are, by the names that programs have for that."""
        return self._memory.tables()

    def sequence(self, adapters: AdapterSet = NO_ADAPTERS) -> Sequence:
        return Sequence(self, adapters)

    def close(self) -> None:
        """Give the memory back, whoever holds the cache still. Nothing may compute with it any more."""
        with self.lock:
            self._memory.clear()
            if self.states is not None:
                self.states.memory.clear()
            for pool in self.pools:
                pool._memory.clear()

    def _hold(self) -> None:
        """Nobody is in the middle of anything until `_end_hold`: what a child process gets is whole."""
        self.lock.acquire()

    def _end_hold(self) -> None:
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
            n_shared = (len(keys) - 1) * KV_BLOCK
            while True:
                n_whole = len(keys) - 1
                rest = token_ids[n_whole * KV_BLOCK : (n_whole + 1) * KV_BLOCK]
                tails = [pool.longest_behind(keys[-1], rest) for pool in self.pools]
                n_tail = min(n for _, n in tails)
                slot = NOTHING
                if self.states is not None:
                    slot, n_tail = self.states.place(keys, rest[:n_tail])
                n_tokens = n_whole * KV_BLOCK + n_tail
                is_found = self.states is None or slot != NOTHING or not n_tokens
                if is_found and all(self._has_window(pool, keys, n_tokens) for pool in self.pools):
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
            if sequence.trail is not None:
                sequence.trail.parting = n_shared
                if n_tokens:
                    sequence.trail.begin(n_tokens, slot)
        return sequence

    def _has_window(self, pool: BlockPool, keys: list[bytes], n_tokens: int) -> bool:
        """Whether a pool has the whole blocks that the token behind n_tokens looks back on."""
        first = first_needed(pool.window, n_tokens)
        return all(pool.whole(key) is not None for key in keys[first + 1 :])

    def put(
        self,
        keys: SequenceOf[bytes],
        token_ids: SequenceOf[int],
        start: int,
        runs: SequenceOf[tuple[int, int]],
        layers: SequenceOf[np.ndarray],
        adapters: AdapterSet,
        states: SequenceOf[State] = (),
    ) -> None:
        """Let whole blocks be found that were computed before, and states of their text.

        keys:    before the first of them, and behind each. start: which block of the text the first of them is.
        runs:    for each pool, the first block that is there, and how many are.
        layers:  uint8 [n, block_bytes] of each layer. Raises CacheFullError when others hold too much.
        """
        with self.lock:
            for pool, (first, n) in zip(self.pools, runs, strict=True):
                own = [i for i, layer in enumerate(self.layers) if layer.window == pool.window]
                for index in range(n if pool.window != RECENT else 0):
                    at = first - start + index
                    if pool.whole(keys[at + 1]) is not None:
                        continue
                    block = pool.take()
                    for i in own:
                        self.memory[i][block] = layers[i][index]
                    tokens = token_ids[at * KV_BLOCK : (at + 1) * KV_BLOCK]
                    pool.name(block, keys[at], tokens, keys[at + 1], adapters)
                    pool.give_back(block)
            if self.states is not None:
                for n, layers_of in states:
                    self._put_state(self.states, keys, token_ids, n - start * KV_BLOCK, layers_of, adapters)

    def _put_state(
        self,
        states: StatePool,
        keys: SequenceOf[bytes],
        token_ids: SequenceOf[int],
        n: int,
        layers: SequenceOf[np.ndarray],
        adapters: AdapterSet,
    ) -> None:
        block, rest = divmod(n, KV_BLOCK)
        slot, found = states.place(keys[: block + 1], token_ids[n - rest : n])
        if slot == NOTHING or found < rest:
            slot = states.slots.take()
            states.write(slot, layers)
            states.name(slot, keys, token_ids, n, adapters)
            states.slots.give_back(slot)

    def restored(
        self,
        token_ids: list[int],
        firsts: SequenceOf[int],
        layers: SequenceOf[np.ndarray],
        adapters: AdapterSet = NO_ADAPTERS,
        states: SequenceOf[State] = (),
    ) -> Sequence:
        """A sequence of a text that was computed before, from its beginning; of a model with states, up to the last.

        firsts:  for each pool, the first block that is there. layers: uint8 [n, block_bytes] of each layer, the blocks
                 from there on. Raises CacheFullError when others hold too much.
        """
        sequence = Sequence(self, adapters)
        for table, first in zip(sequence.tables, firsts, strict=True):
            table.extend([GONE] * first)
        try:
            sequence.reserve(len(token_ids))
            if sequence.trail is not None:
                with self.lock:
                    sequence.trail.restore(states[-1:])
        except CacheFullError:
            sequence.release()
            raise
        for layer, memory, blocks in zip(self.layers, self.memory, layers, strict=True):
            index = next(i for i, pool in enumerate(self.pools) if pool.window == layer.window)
            memory[sequence.tables[index].blocks[firsts[index] :]] = blocks
        sequence.tokens.extend(token_ids)
        if sequence.trail is not None:
            sequence.trim(len(token_ids))
        return sequence

    def forget(self, adapter: Adapter | None = None) -> None:
        """Find nothing any more of what was computed with an adapter, or of anything."""
        with self.lock:
            for pool in self.pools:
                pool.forget(lambda adapters: adapter is None or adapters.has(adapter))
            if self.states is not None:
                self.states.slots.forget(lambda adapters: adapter is None or adapters.has(adapter))


class Sequence:
    """The tokens of one text that are in the cache, and the blocks that hold them.

    adapters:      what they are computed with beside the model: keys and values depend on it.
    tables:        its blocks, for each pool of the cache. trail: its states, where the model has recurrent layers.
    block_tables:  of these, what kernels read, int32, by window.
    keys:          of what comes before its blocks, as far as they were remembered.
    """

    def __init__(self, cache: KVCache, adapters: AdapterSet = NO_ADAPTERS) -> None:
        self.cache = cache
        self.adapters = adapters
        self.tokens: list[int] = []
        self.tables = [BlockTable(pool) for pool in cache.pools]
        self.block_tables = {table.pool.window: table.kernel_array for table in self.tables}
        self._has_windows = any(window is not None for window in self.block_tables)
        self.trail = Trail(cache.states) if cache.states is not None else None
        self.keys = [root_of(adapters)]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_blocks(self) -> int:
        return sum(len(table.blocks) - table.n_gone for table in self.tables)

    @property
    def n_bytes(self) -> int:
        """Of its blocks in all layers, and of its states."""
        n_held = {table.pool.window: len(table.blocks) - table.n_gone for table in self.tables}
        states = self.trail.n_held * self.trail.pool.shape.slot_bytes if self.trail is not None else 0
        return sum(n_held[layer.window] * layer.block_bytes for layer in self.cache.layers) + states

    def can_grow(self, n_tokens: int) -> bool:
        """Whether there is room for so many more tokens now."""
        n = len(self.tokens)
        if self.trail is not None and not self.trail.can_grow:
            return False
        return all(table.n_wanted(n, n_tokens) <= table.pool.n_free for table in self.tables)

    def grow(self, n_tokens: int) -> bool:
        """Make room for so many more tokens, if there is any; returns whether there was."""
        n = len(self.tokens)
        if self.trail is None:
            for table in self.tables:
                if not table.has_room(n, n_tokens):
                    break
            else:
                return True
        if not self.can_grow(n_tokens):
            return False
        self.reserve(n_tokens)
        return True

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many more tokens. Raises CacheFullError when there is none; what was had stays."""
        with self.cache.lock:
            for table in self.tables:
                table.reserve(len(self.tokens), n_tokens)
            if self.trail is not None:
                self.trail.reserve()

    def slots(self, n_tokens: int) -> dict[int | None, list[int]]:
        """Where the keys and values of the next tokens go, by window: block * KV_BLOCK + place in the block."""
        start = len(self.tokens)
        return {
            table.pool.window: [
                table.blocks[p // KV_BLOCK] * KV_BLOCK + p % KV_BLOCK for p in range(start, start + n_tokens)
            ]
            for table in self.tables
        }

    def plan_states(self, n_tokens: int, n_guesses: int = 0) -> SequenceOf[Step]:
        """From which state to which the next tokens go, the last n_guesses of which may be wrong."""
        if self.trail is None:
            return ()
        with self.cache.lock:
            return self.trail.plan(n_tokens, n_guesses)

    def states(self, start: int, end: int) -> SequenceOf[State]:
        """Copies of the states behind tokens start + 1 to end that are there; others may need their room soon."""
        if self.trail is None:
            return ()
        with self.cache.lock:
            return self.trail.copies(start, end)

    def append(self, token_ids: SequenceOf[int]) -> None:
        """Count tokens whose keys and values now are in the reserved slots; with states, up to the last of these."""
        self.tokens.extend(token_ids)
        if self.trail is not None and token_ids:
            with self.cache.lock:
                n_tokens = self.trail.commit(len(self.tokens))
            if n_tokens < len(self.tokens):
                self.trim(n_tokens)

    def leave_behind(self) -> None:
        """Give back what windows do not reach any more: who trims this by more than a few tokens then loses it all."""
        if self._has_windows:
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
            if self.trail is not None:
                self.trail.remember(self.keys, self.tokens, self.adapters, not whole_blocks)

    def _name(self, index: int, tokens: list[int], key: bytes | None) -> None:
        for table in self.tables:
            if key is not None and table.pool.window == RECENT:
                continue  # nobody needs it any more
            if (block := table.blocks[index]) != GONE and not table.pool.is_shared(block):
                table.pool.name(block, self.keys[index], tokens, key, self.adapters)

    def trim(self, n_tokens: int) -> None:
        """Keep the first n_tokens only: with states, no more than up to the last checkpoint among them.

        Where a window has left behind what they need, nothing is kept.
        """
        n_tokens = self._reachable(n_tokens)
        del self.tokens[n_tokens:]
        del self.keys[n_tokens // KV_BLOCK + 1 :]
        with self.cache.lock:
            for table in self.tables:
                table.shorten(blocks_for(n_tokens))
            if self.trail is not None:
                self.trail.trim(n_tokens)

    def _reachable(self, n_tokens: int) -> int:
        """How many of the first n_tokens can be gone on from: up to a block, where it is not known as it was before it
        was full.
        """
        if any(table.pool.window == RECENT and table.n_gone * KV_BLOCK > n_tokens for table in self.tables):
            n_tokens -= n_tokens % KV_BLOCK
        if self.trail is not None:
            with self.cache.lock:
                best = self.trail.best(n_tokens)
            n_tokens = best.n if best is not None else 0
        return n_tokens if all(table.reaches(n_tokens) for table in self.tables) else 0

    def fork(self, n_tokens: int) -> Sequence:
        """Another sequence that begins with the first n_tokens of this one, or with fewer, as `trim` has it; their
        blocks are shared.
        """
        other = Sequence(self.cache, self.adapters)
        n_tokens = self._reachable(min(n_tokens, len(self.tokens)))
        with self.cache.lock:
            for table, own in zip(other.tables, self.tables, strict=True):
                blocks = own.blocks[: blocks_for(n_tokens)]
                table.extend([block if block == GONE else own.pool.share(block) for block in blocks])
            if other.trail is not None and self.trail is not None:
                other.trail.share(self.trail, n_tokens)
        other.tokens = self.tokens[:n_tokens]
        other.keys = self.keys[: n_tokens // KV_BLOCK + 1]
        return other

    def release(self) -> None:
        """Give all blocks back."""
        self.trim(0)
        if self.trail is not None:
            with self.cache.lock:
                self.trail.release()


def root_of(adapters: AdapterSet) -> bytes:
    """The key of what comes before a text: what it is computed with beside the model."""
    uses = repr([(adapter.digest, scale) for adapter, scale in adapters.uses])
    return hashlib.blake2b(uses.encode(), digest_size=KEY_BYTES).digest()
