"""The cache's blocks: shared by forks until one goes on, given back by trims, never lost and never in two hands."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from edgellm.engine.adapter_set import AdapterSet
from edgellm.engine.kv_cache import GONE, KVCache, Sequence
from edgellm.engine.prefix_cache import PrefixCache
from edgellm.errors import CacheFullError
from edgellm.graph.cache_memory import CacheLayer
from edgellm.kernels.kv_types import RECENT
from edgellm.kernels.records import KV_BLOCK
from edgellm.text.common import n_common

WINDOW = 2 * KV_BLOCK + 10


def new_cache(n_blocks: int = 12) -> KVCache:
    return KVCache([CacheLayer(1, 16, 16)] * 2, n_blocks)


def windowed_cache(n_blocks: int = 12) -> KVCache:
    """A layer that sees all, and one that sees a window."""
    return KVCache(
        [CacheLayer(1, 16, 16), CacheLayer(1, 16, 16, window=WINDOW)], {None: 2 * n_blocks, WINDOW: n_blocks}
    )


def recent_cache(n_blocks: int = 12) -> KVCache:
    """A layer that sees all, and one that has blocks only until they are full."""
    return KVCache(
        [CacheLayer(1, 16, 16), CacheLayer(1, 16, 16, window=RECENT)], {None: 2 * n_blocks, RECENT: n_blocks}
    )


CACHES = {"all": new_cache, "windowed": windowed_cache, "recent": recent_cache}


def first_kept(window: int | None, n_tokens: int) -> int:
    """The first token that a layer must have."""
    if window == RECENT:
        return n_tokens // KV_BLOCK * KV_BLOCK
    return 0 if window is None else max(0, n_tokens - window + 1)


def grow(sequence: Sequence, n: int, first: int = 0, has_room: bool = False) -> None:
    """Append n tokens, writing their ids where their keys would go."""
    ids = [(first + i) % 251 for i in range(len(sequence), len(sequence) + n)]
    if not has_room:
        sequence.reserve(n)
    for layer, memory in zip(sequence.cache.layers, sequence.cache.memory, strict=True):
        for slot, token in zip(sequence.slots(n)[layer.window], ids, strict=True):
            memory[slot // KV_BLOCK, slot % KV_BLOCK] = token
    sequence.append(ids)


def written(sequence: Sequence) -> list[int]:
    """The tokens as the memory of the last layer has them; where its window has gone, as the first layer has them."""
    found = []
    for layer, memory in zip(sequence.cache.layers, sequence.cache.memory, strict=True):
        places = np.arange(len(sequence))
        first = first_kept(layer.window, len(sequence))
        blocks = sequence.block_tables[layer.window].array[places // KV_BLOCK]
        found.append(memory[blocks, places % KV_BLOCK].tolist())
        found[-1][:first] = sequence.tokens[:first] if layer.window else found[-1][:first]
    assert all(one == found[0] for one in found)
    return found[0]


def table_of(sequence: Sequence) -> list[int]:
    return sequence.tables[0].blocks


def test_a_fork_takes_a_block_only_when_it_goes_on() -> None:
    cache = new_cache()
    a = cache.sequence()
    grow(a, 2 * KV_BLOCK + 10)
    b = a.fork(2 * KV_BLOCK + 5)
    assert cache.n_free_blocks == 9 and b.tokens == a.tokens[: 2 * KV_BLOCK + 5]
    grow(b, 3, first=100)
    assert cache.n_free_blocks == 8
    assert table_of(b)[:2] == table_of(a)[:2] and table_of(b)[2] != table_of(a)[2]
    grow(a, 3)  # alone with its block again, it needs no other
    assert cache.n_free_blocks == 8
    assert written(a) == a.tokens and written(b) == b.tokens
    a.release()
    assert written(b) == b.tokens
    b.release()
    assert cache.n_free_blocks == cache.n_blocks


def test_a_block_that_others_know_or_hold_is_copied_before_it_is_written() -> None:
    cache = new_cache()
    a = cache.sequence()
    grow(a, 50)
    known = list(a.tokens)
    a.remember(whole_blocks=False)
    a.trim(40)
    assert a.grow(5)
    grow(a, 5, first=3, has_room=True)
    b = a.fork(43)
    assert b.grow(5)
    grow(b, 5, first=4, has_room=True)
    c = cache.begin(known)
    assert len(c) >= 40 and c.tokens == known[: len(c)]
    for sequence in (a, b, c):
        assert written(sequence) == sequence.tokens
    n_free = cache.n_free_blocks
    assert a.grow(KV_BLOCK - 45) and cache.n_free_blocks == n_free  # of its own block, it takes what is there
    assert a.grow(KV_BLOCK - 44) and cache.n_free_blocks == n_free - 1


def test_a_full_cache_says_so() -> None:
    cache = new_cache(2)
    a = cache.sequence()
    grow(a, 2 * KV_BLOCK)
    with pytest.raises(CacheFullError, match="all 128 tokens of the KV cache are in use"):
        a.reserve(1)
    assert written(a) == a.tokens
    a.trim(KV_BLOCK)
    grow(a, 1)


def test_a_copy_takes_a_block_and_leaves_the_others_theirs() -> None:
    cache = new_cache(3)
    a = cache.sequence()
    grow(a, 50)
    b, c = a.fork(50), a.fork(50)
    grow(b, 1, first=3)
    grow(c, 1, first=4)
    assert cache.n_free_blocks == 0
    with pytest.raises(CacheFullError):
        a.fork(10).reserve(1)
    assert written(a) == a.tokens and written(b) == b.tokens and written(c) == c.tokens


def test_threads_lose_no_block() -> None:
    cache = new_cache(64)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(150):
            text = cache.sequence()
            grow(text, int(random.integers(1, 80)))
            fork = text.fork(int(random.integers(0, len(text))))
            grow(fork, int(random.integers(1, 80)))
            assert written(text) == text.tokens and written(fork) == fork.tokens
            text.release()
            fork.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert cache.n_free_blocks == 64


def test_a_window_keeps_no_more_than_it_needs() -> None:
    cache = windowed_cache(40)
    a = cache.sequence()
    for _ in range(30):
        grow(a, KV_BLOCK)
        a.leave_behind()
        assert written(a) == a.tokens
    full, sliding = a.tables
    assert len(full.blocks) == 30 and full.n_gone == 0
    assert sum(block != GONE for block in sliding.blocks) <= 5
    a.trim(30 * KV_BLOCK - 20)  # a few are taken back
    grow(a, 20, first=5)
    assert written(a) == a.tokens
    a.trim(10 * KV_BLOCK)  # what these look back on is gone
    assert len(a) == 0 and cache.n_free_blocks == cache.n_blocks


def test_a_prefix_is_found_where_its_window_is_known() -> None:
    cache = windowed_cache(40)
    a = cache.sequence()
    for _ in range(20):
        grow(a, KV_BLOCK)
        a.remember()
        a.leave_behind()
    known = cache.begin(a.tokens)
    assert len(known) == 20 * KV_BLOCK and written(known) == known.tokens
    known.release()
    # What the window has left behind is still known, until others need its room.
    middle = cache.begin(a.tokens[: 9 * KV_BLOCK + 7])
    assert len(middle) == 9 * KV_BLOCK + 7 and written(middle) == middle.tokens
    middle.release()
    other = cache.sequence()
    while cache.pools[1].n_free:
        grow(other, KV_BLOCK, first=100)
    assert len(cache.begin(a.tokens[: 9 * KV_BLOCK + 7])) == 0
    assert len(cache.begin(a.tokens)) == 20 * KV_BLOCK


def test_blocks_that_were_full_are_gone_on_from_at_their_ends() -> None:
    """And nothing is remembered of what they were before: it takes more room, and nobody looks at it."""
    cache = recent_cache(40)
    a = cache.sequence()
    for _ in range(20):
        grow(a, KV_BLOCK)
        a.remember()
        a.leave_behind()
    grow(a, 30)
    of_all, recent = a.tables
    assert len(of_all.blocks) == 21 and sum(block != GONE for block in recent.blocks) <= 3
    assert cache.pools[1].n_free + 3 >= cache.pools[1].n_blocks and not cache.pools[1].n_idle
    fork = a.fork(20 * KV_BLOCK + 7)
    assert len(fork) == 20 * KV_BLOCK + 7 and written(fork) == fork.tokens
    grow(fork, KV_BLOCK, first=3)
    assert written(fork) == fork.tokens and written(a) == a.tokens
    middle = cache.begin(a.tokens[: 9 * KV_BLOCK + 7])
    assert len(middle) == 9 * KV_BLOCK
    grow(middle, 70, first=9)
    assert written(middle) == middle.tokens
    a.trim(10 * KV_BLOCK + 9)
    assert len(a) == 10 * KV_BLOCK
    grow(a, 70, first=5)
    assert written(a) == a.tokens


class Adapter:
    """As much of one as the cache looks at."""

    n_virtual = 0
    is_dora = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.digest = str(number)


SETS = [AdapterSet(), AdapterSet(((Adapter(1), 1.0),)), AdapterSet(((Adapter(1), 0.5), (Adapter(2), 1.0)))]


class Sequences(RuleBasedStateMachine):
    """Any order of appends, forks, trims, ends, and of finding what others have left, with and without adapters.

    The reference is plain lists: every sequence has its own tokens at its own places, what is found was there, and
    nothing that must be known is not.
    """

    sequences = Bundle("sequences")

    @initialize(n_blocks=st.sampled_from([12, 400]), kind=st.sampled_from(list(CACHES)))
    def start(self, n_blocks: int, kind: str) -> None:
        self.cache = CACHES[kind](n_blocks)
        self.prefixes = PrefixCache(self.cache)
        self.alive: list[Sequence] = []
        self.ended: list[tuple[AdapterSet, list[int]]] = []
        self.knows_all = n_blocks > 100 and kind == "all"

    @rule(target=sequences, adapters=st.sampled_from(SETS))
    def begin(self, adapters: AdapterSet) -> Sequence:
        self.alive.append(self.cache.sequence(adapters))
        return self.alive[-1]

    @rule(sequence=sequences, n=st.one_of(st.integers(1, 3), st.integers(1, 100)), first=st.integers(0, 3))
    def append(self, sequence: Sequence, n: int, first: int) -> None:
        can_grow = sequence.can_grow(n)
        try:
            grow(sequence, n, first)
        except CacheFullError:
            assert not can_grow
        else:
            assert can_grow
            sequence.leave_behind()

    @rule(sequence=sequences, n=st.one_of(st.integers(1, 3), st.integers(1, 100)), first=st.integers(0, 3))
    def append_if_there_is_room(self, sequence: Sequence, n: int, first: int) -> None:
        can_grow = sequence.can_grow(n)
        assert sequence.grow(n) == can_grow
        if can_grow:
            grow(sequence, n, first, has_room=True)
            sequence.leave_behind()

    @rule(sequence=sequences, whole=st.booleans())
    def remember(self, sequence: Sequence, whole: bool) -> None:
        sequence.remember(whole)

    @rule(target=sequences, sequence=sequences, share=st.floats(0, 1))
    def fork(self, sequence: Sequence, share: float) -> Sequence:
        n = int(len(sequence) * share)
        self.alive.append(sequence.fork(n))
        assert self.alive[-1].tokens in (sequence.tokens[:n], sequence.tokens[: n // KV_BLOCK * KV_BLOCK], [])
        return self.alive[-1]

    @rule(sequence=sequences, share=st.floats(0, 1))
    def trim(self, sequence: Sequence, share: float) -> None:
        n = int(len(sequence) * share)
        before = sequence.tokens[:n]
        sequence.trim(n)
        assert sequence.tokens in (before, before[: n // KV_BLOCK * KV_BLOCK], [])

    @rule(sequence=consumes(sequences), keep=st.booleans())
    def end(self, sequence: Sequence, keep: bool) -> None:
        self.alive = [other for other in self.alive if other is not sequence]
        if keep:
            self.ended.append((sequence.adapters, list(sequence.tokens)))
            self.prefixes.keep(sequence)
        else:
            sequence.release()

    @rule(target=sequences, n=st.integers(1, 300), first=st.integers(0, 3), adapters=st.sampled_from(SETS))
    def find(self, n: int, first: int, adapters: AdapterSet) -> Sequence:
        ids = [(first + i) % 251 for i in range(n)]
        known = self.ended + [(sequence.adapters, sequence.tokens) for sequence in self.alive]
        least = max((n_common(tokens, ids) for own, tokens in known if own == adapters), default=0)
        found = self.prefixes.longest(ids, self.alive, adapters)
        self.alive.append(found)
        assert found.tokens == ids[: len(found)]
        if self.knows_all:
            assert len(found) >= least
        return found

    @rule()
    def forget(self) -> None:
        self.prefixes.clear()
        self.ended.clear()

    @rule(adapter=st.sampled_from([SETS[1].uses[0][0], SETS[2].uses[1][0]]))
    def forget_an_adapter(self, adapter: Adapter) -> None:
        self.prefixes.forget(adapter)
        self.ended = [(own, tokens) for own, tokens in self.ended if not own.has(adapter)]

    @invariant()
    def every_sequence_keeps_its_tokens(self) -> None:
        for sequence in self.alive:
            assert written(sequence) == sequence.tokens

    @invariant()
    def every_owner_is_counted(self) -> None:
        for index, pool in enumerate(self.cache.pools):
            owners = np.zeros(pool.n_blocks, int)
            for sequence in [*self.alive, *self.prefixes._arriving]:
                for block in sequence.tables[index].blocks:
                    owners[block] += block != GONE
            assert owners.tolist() == pool._owners
            assert sorted([*pool._free, *pool._idle]) == np.flatnonzero(owners == 0).tolist()
            assert all(block in pool._names for block in pool._idle)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            for sequence in self.alive:
                sequence.release()
            self.prefixes.clear()
            assert self.cache.n_free_blocks == self.cache.n_blocks
            assert all(not pool._names and not pool._whole and not pool._behind for pool in self.cache.pools)


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
