"""The cache's blocks: shared by forks until one goes on, given back by trims, never lost and never in two hands."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from edgellm.engine.kv_cache import CacheLayer, KVCache, Sequence
from edgellm.engine.prefix_cache import PrefixCache
from edgellm.errors import CacheFullError
from edgellm.kernels.records import KV_BLOCK
from edgellm.text.common import n_common


def new_cache(n_blocks: int = 12) -> KVCache:
    return KVCache([CacheLayer(1, 16, 16)] * 2, n_blocks)


def grow(sequence: Sequence, n: int, first: int = 0) -> None:
    """Append n tokens, writing their ids where their keys would go."""
    ids = [(first + i) % 251 for i in range(len(sequence), len(sequence) + n)]
    sequence.reserve(n)
    for slot, token in zip(sequence.slots(n), ids, strict=True):
        for memory in sequence.cache._memory:
            memory[slot // KV_BLOCK, slot % KV_BLOCK] = token
    sequence.append(ids)


def written(sequence: Sequence) -> list[int]:
    places = np.arange(len(sequence))
    blocks = sequence.block_table[places // KV_BLOCK]
    return sequence.cache._memory[1][blocks, places % KV_BLOCK].tolist()


def test_a_fork_takes_a_block_only_when_it_goes_on() -> None:
    cache = new_cache()
    a = cache.sequence()
    grow(a, 2 * KV_BLOCK + 10)
    b = a.fork(2 * KV_BLOCK + 5)
    assert cache.n_free_blocks == 9 and b.tokens == a.tokens[: 2 * KV_BLOCK + 5]
    grow(b, 3, first=100)
    assert cache.n_free_blocks == 8
    assert b.block_table[:2].tolist() == a.block_table[:2].tolist() and b.block_table[2] != a.block_table[2]
    grow(a, 3)  # alone with its block again, it needs no other
    assert cache.n_free_blocks == 8
    assert written(a) == a.tokens and written(b) == b.tokens
    a.release()
    assert written(b) == b.tokens
    b.release()
    assert cache.n_free_blocks == cache.n_blocks


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


class Sequences(RuleBasedStateMachine):
    """Any order of appends, forks, trims and releases, and of keeping and finding prefixes."""

    sequences = Bundle("sequences")

    @initialize()
    def start(self) -> None:
        self.cache = new_cache()
        self.prefixes = PrefixCache()
        self.alive: list[Sequence] = []

    @rule(target=sequences)
    def begin(self) -> Sequence:
        self.alive.append(self.cache.sequence())
        return self.alive[-1]

    @rule(sequence=sequences, n=st.integers(1, 100), first=st.integers(0, 3))
    def append(self, sequence: Sequence, n: int, first: int) -> None:
        try:
            grow(sequence, n, first)
        except CacheFullError:
            assert self.cache.n_free_blocks == 0
            self.prefixes.evict()

    @rule(target=sequences, sequence=sequences, share=st.floats(0, 1))
    def fork(self, sequence: Sequence, share: float) -> Sequence:
        self.alive.append(sequence.fork(int(len(sequence) * share)))
        return self.alive[-1]

    @rule(sequence=sequences, share=st.floats(0, 1))
    def trim(self, sequence: Sequence, share: float) -> None:
        sequence.trim(int(len(sequence) * share))

    @rule(sequence=consumes(sequences), keep=st.booleans())
    def end(self, sequence: Sequence, keep: bool) -> None:
        self.alive = [other for other in self.alive if other is not sequence]
        if keep:
            self.prefixes.keep(sequence)
        else:
            sequence.release()

    @rule(target=sequences, n=st.integers(1, 300), first=st.integers(0, 3))
    def find(self, n: int, first: int) -> Sequence:
        ids = [(first + i) % 251 for i in range(n)]
        longest = max((n_common(s.tokens, ids) for s in self.everyone()), default=0)
        found = self.prefixes.longest(ids, self.alive) or self.cache.sequence()
        self.alive.append(found)
        assert found.tokens == ids[:longest]
        return found

    def everyone(self) -> list[Sequence]:
        return [*self.alive, *self.prefixes._kept, *self.prefixes._arriving]

    @invariant()
    def every_sequence_keeps_its_tokens(self) -> None:
        for sequence in self.alive:
            assert written(sequence) == sequence.tokens

    @invariant()
    def every_owner_is_counted(self) -> None:
        owners = np.zeros(self.cache.n_blocks, int)
        for sequence in self.everyone():
            owners[sequence.block_table[: sequence.n_blocks]] += 1
        assert owners.tolist() == self.cache._owners
        assert sorted(self.cache._free) == np.flatnonzero(owners == 0).tolist()


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
