"""The cache's blocks: shared by forks, given back by trims, never lost and never in two hands by mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from edgellm.engine.kv_cache import CacheLayer, KVCache, blocks_for
from edgellm.errors import ContextOverflowError
from edgellm.kernels.records import KV_BLOCK


def new_cache(n_blocks: int = 12) -> KVCache:
    return KVCache([CacheLayer(1, 16)] * 2, n_blocks)


def grow(sequence, n: int) -> None:
    """Append n tokens, writing their number where their keys would go."""
    sequence.reserve(n)
    for slot, token in zip(sequence.slots(n), range(len(sequence), len(sequence) + n), strict=True):
        for memory in sequence.cache._memory:
            memory[slot // KV_BLOCK, slot % KV_BLOCK] = token % 251
    sequence.append([token % 251 for token in range(len(sequence), len(sequence) + n)])


def written(sequence) -> list[int]:
    blocks = sequence.block_table[np.arange(len(sequence)) // KV_BLOCK]
    return sequence.cache._memory[1][blocks, np.arange(len(sequence)) % KV_BLOCK].tolist()


def test_a_fork_shares_full_blocks_and_copies_the_last():
    cache = new_cache()
    a = cache.sequence()
    grow(a, 2 * KV_BLOCK + 10)
    used = cache.n_blocks - cache.n_free_blocks
    b = a.fork(2 * KV_BLOCK + 5)
    assert cache.n_blocks - cache.n_free_blocks == used + 1
    assert b.block_table[:2].tolist() == a.block_table[:2].tolist() and b.block_table[2] != a.block_table[2]
    assert b.tokens == a.tokens[: 2 * KV_BLOCK + 5]
    a.release()
    assert written(b) == b.tokens
    b.release()
    assert cache.n_free_blocks == cache.n_blocks


def test_a_full_cache_says_so():
    cache = new_cache(2)
    a = cache.sequence()
    grow(a, 2 * KV_BLOCK)
    with pytest.raises(ContextOverflowError, match="128 tokens of the KV cache are in use"):
        a.reserve(1)
    a.trim(KV_BLOCK)
    grow(a, 1)


class Sequences(RuleBasedStateMachine):
    """Any order of appends, forks, trims and releases."""

    sequences = Bundle("sequences")

    @initialize()
    def start(self):
        self.cache = new_cache()
        self.alive = []

    @rule(target=sequences)
    def begin(self):
        self.alive.append(self.cache.sequence())
        return self.alive[-1]

    @rule(sequence=sequences, n=st.integers(1, 100))
    def append(self, sequence, n):
        if blocks_for(len(sequence) + n) - sequence.n_blocks <= self.cache.n_free_blocks:
            grow(sequence, n)

    @rule(target=sequences, sequence=sequences, share=st.floats(0, 1))
    def fork(self, sequence, share):
        if self.cache.n_free_blocks:
            self.alive.append(sequence.fork(int(len(sequence) * share)))
            return self.alive[-1]
        return sequence

    @rule(sequence=sequences, share=st.floats(0, 1))
    def trim(self, sequence, share):
        # Tokens after the cut are written anew only into blocks of one's own: cut where the block is.
        sequence.trim(int(len(sequence) * share) // KV_BLOCK * KV_BLOCK)

    @rule(sequence=consumes(sequences))
    def release(self, sequence):
        if not any(sequence is other for other in self.alive):
            return
        sequence.release()

    @invariant()
    def every_sequence_keeps_its_tokens(self):
        for sequence in getattr(self, "alive", []):
            assert written(sequence) == sequence.tokens

    @invariant()
    def no_block_is_lost(self):
        if hasattr(self, "cache"):
            used = {int(b) for s in self.alive for b in s.block_table[: s.n_blocks]}
            assert len(used) + self.cache.n_free_blocks == self.cache.n_blocks


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
