"""Very long words: the same tokens as one pair at a time, in little more work than their length."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.text import load_tokenizer
from edgellm.text.long_words import merge_long
from edgellm.text.merging import merge_pairs
from edgellm.text.pairs import Pairs

from . import oracles

# Pairs of letters, with ranks that may be alike, and lower for what they make than for themselves.
PAIRS = st.dictionaries(st.text("abc", min_size=2, max_size=5), st.integers(0, 6), max_size=14)


def merged_by_heap(word: str, ranks: dict[str, int]) -> list[str]:
    def rank(left: bytes, right: bytes) -> int | None:
        return ranks.get((left + right).decode())

    return [symbol.decode() for symbol in merge_pairs([char.encode() for char in word], rank)]


def pairs_of(ranks: dict[str, int]) -> Pairs:
    """The pairs of a vocabulary of these tokens and "a", "b"."""
    ids = {name.encode(): i for i, name in enumerate(["a", "b", *ranks])}
    return Pairs(list(ids), ids.get, lambda left, right: ranks.get((left + right).decode()), str.encode)


def merged_at_once(word: str, ranks: dict[str, int]) -> list[str] | None:
    pairs = pairs_of(ranks)
    merged = merge_long(pairs.numbers(word), pairs)
    return None if merged is None else [pairs.symbols[symbol].decode() for symbol in merged]


@settings(max_examples=400, deadline=None)
@given(PAIRS, st.text("abc", max_size=60), st.sampled_from([1, 3, 1000]))
def test_any_ranks_give_the_symbols_of_the_heap(ranks, word, many):
    """With every pair joined in NumPy, every pair joined alone, and both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgellm.text.long_words.MANY", many)
        assert merged_at_once(word, ranks) in (None, merged_by_heap(word, ranks))


@cache
def trained(kind: str):
    """A tokenizer that merges every word at once, and one that does it pair by pair."""
    make = oracles.train_byte_level if kind != "llama" else lambda _: oracles.train_sentencepiece()[0]
    return load_tokenizer(make(kind)), load_tokenizer(make(kind))


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "llama"])
def test_words_of_text_give_the_same_ids(kind):
    at_once, by_heap = trained(kind)

    @settings(max_examples=100, deadline=None)
    @given(oracles.texts)
    def check(text):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgellm.text.many_words.LONG", 1)
            patch.setattr("edgellm.text.many_words.MOST", 0)
            patch.setattr("edgellm.text.spm.CUT_FROM_CHARS", 0)
            found = at_once.encode(text)
        assert found == by_heap.encode(text)

    check()


@pytest.mark.parametrize("kind", ["gpt-2", "llama"])
@pytest.mark.parametrize("letters", ["a", "etaoinshrdlu", "aд漢 "])
def test_long_words_are_those_of_the_original(kind, letters):
    word = "".join(random.Random(7).choices(letters, k=60_000)).replace(" ", "")
    if kind == "llama":
        metadata, original = oracles.train_sentencepiece()
        assert load_tokenizer(metadata).encode(word) == original.encode(word)
    else:
        metadata = oracles.train_byte_level(kind)
        assert load_tokenizer(metadata).encode(word) == oracles.byte_level(metadata).encode(word).ids


def test_the_number_of_steps_does_not_grow_with_the_word(monkeypatch):
    """Joining all places of a pair takes one step, however many they are."""
    steps = []
    from edgellm.text.long_words import _Word

    plain = _Word._join_many
    monkeypatch.setattr(_Word, "_join_many", lambda self, *args: (steps.append(1), plain(self, *args))[1])
    ours = load_tokenizer(oracles.train_byte_level("gpt-2"))
    counts = []
    for n in (50_000, 400_000):
        steps.clear()
        ours.encode("".join(random.Random(3).choices("thequickbrown", k=n)))
        counts.append(len(steps))
    assert counts[1] < 2 * counts[0]


def test_ranks_that_make_everything_wait_are_left_to_the_heap():
    ranks = {"a" * n: 60 - n for n in range(2, 60)}
    word = "a" * 3000
    assert merged_at_once(word, ranks) in (None, merged_by_heap(word, ranks))
