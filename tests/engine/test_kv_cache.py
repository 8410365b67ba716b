"""The cache's blocks: shared by forks until one goes on, given back by trims, never lost and never in two hands."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from edgellm.engine.kv_cache import MAX_PARKED, CacheLayer, KVCache, Sequence
from edgellm.errors import ContextOverflowError
from edgellm.kernels.records import KV_BLOCK


def new_cache(n_blocks: int = 12) -> KVCache:
    return KVCache([CacheLayer(1, 16)] * 2, n_blocks)


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
    with pytest.raises(ContextOverflowError, match="all 128 tokens of the KV cache are in use"):
        a.reserve(1)
    assert written(a) == a.tokens
    a.trim(KV_BLOCK)
    grow(a, 1)


def test_parked_texts_give_way_the_oldest_first() -> None:
    cache = new_cache(6)
    for first in (1, 2, 3):
        text = cache.sequence()
        grow(text, 2 * KV_BLOCK, first)
        cache.park(text)
    grow(cache.sequence(), KV_BLOCK)
    assert len(cache.resume([1, 2])) == 0  # gone
    assert len(cache.resume([2, 3])) == 2


def test_no_more_texts_are_parked_than_agreed() -> None:
    cache = new_cache(50)
    for first in range(MAX_PARKED + 5):
        text = cache.sequence()
        grow(text, 10, first)
        cache.park(text)
    cache.resume([250])
    assert cache.n_blocks - cache.n_free_blocks == MAX_PARKED


def test_resuming_takes_the_longest_beginning() -> None:
    cache = new_cache()
    for n in (5, 70, 40):
        text = cache.sequence()
        grow(text, n)
        cache.park(text)
    ids = [i % 251 for i in range(60)]
    assert cache.resume(ids).tokens == ids  # a fork of the 70, which stays
    assert cache.resume(ids).tokens == ids
    whole = cache.resume([i % 251 for i in range(100)])
    assert len(whole) == 70
    assert len(cache.resume(ids)) == 40  # the 70 are in use now
    assert len(cache.resume([7, *ids])) == 0


def test_the_only_text_of_a_full_cache_can_be_resumed_within() -> None:
    cache = new_cache(1)
    text = cache.sequence()
    grow(text, 50)
    cache.park(text)
    again = cache.resume(list(range(30)))
    grow(again, 34, first=9)
    assert written(again) == again.tokens


def test_threads_lose_no_block() -> None:
    cache = new_cache(64)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(150):
            text = cache.resume(list(range(random.integers(1, 200))))
            grow(text, int(random.integers(1, 80)))
            assert written(text) == text.tokens
            cache.park(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    grow(cache.sequence(), 64 * KV_BLOCK)  # what is parked makes room for all


class Sequences(RuleBasedStateMachine):
    """Any order of appends, forks, trims, releases, parking and resuming."""

    sequences = Bundle("sequences")

    @initialize()
    def start(self) -> None:
        self.cache = new_cache()
        self.alive: list[Sequence] = []

    @rule(target=sequences)
    def begin(self) -> Sequence:
        self.alive.append(self.cache.sequence())
        return self.alive[-1]

    @rule(sequence=sequences, n=st.integers(1, 100), first=st.integers(0, 3))
    def append(self, sequence: Sequence, n: int, first: int) -> None:
        try:
            grow(sequence, n, first)
        except ContextOverflowError:
            assert self.cache.n_free_blocks == 0 and not self.cache._parked

    @rule(target=sequences, sequence=sequences, share=st.floats(0, 1))
    def fork(self, sequence: Sequence, share: float) -> Sequence:
        self.alive.append(sequence.fork(int(len(sequence) * share)))
        return self.alive[-1]

    @rule(sequence=sequences, share=st.floats(0, 1))
    def trim(self, sequence: Sequence, share: float) -> None:
        sequence.trim(int(len(sequence) * share))

    @rule(sequence=consumes(sequences), park=st.booleans())
    def end(self, sequence: Sequence, park: bool) -> None:
        self.alive = [other for other in self.alive if other is not sequence]
        if park:
            self.cache.park(sequence)
        else:
            sequence.release()

    @rule(target=sequences, n=st.integers(1, 300), first=st.integers(0, 3))
    def resume(self, n: int, first: int) -> Sequence:
        ids = [(first + i) % 251 for i in range(n)]
        self.alive.append(self.cache.resume(ids))
        assert self.alive[-1].tokens == ids[: len(self.alive[-1])]
        return self.alive[-1]

    @invariant()
    def every_sequence_keeps_its_tokens(self) -> None:
        for sequence in self.alive:
            assert written(sequence) == sequence.tokens

    @invariant()
    def every_owner_is_counted(self) -> None:
        everyone = [*self.alive, *self.cache._parked, *self.cache._arriving]
        owners = np.zeros(self.cache.n_blocks, int)
        for sequence in everyone:
            owners[sequence.block_table[: sequence.n_blocks]] += 1
        assert owners.tolist() == self.cache._owners
        assert sorted(self.cache._free) == np.flatnonzero(owners == 0).tolist()


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
