"""Many words at once: the same ids as one after the other, and as the originals."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import FormatError
from edgellm.text import load_tokenizer
from edgellm.text import many_words as module
from edgellm.text.many_words import merge_words

from . import oracles
from .test_long_words import PAIRS, merged_by_heap, pairs_of


@pytest.fixture
def in_rounds(monkeypatch):
    """Every text is merged in NumPy, whatever its size, and to its end."""
    for name in ("MANY", "FEW"):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr("edgellm.text.spm.CUT_FROM_CHARS", 0)


@settings(max_examples=400, deadline=None)
@given(
    PAIRS, st.lists(st.text("abcd", max_size=30), max_size=12), st.sampled_from([(1, 99), (2, 99), (1, 8), (99, 99)])
)
def test_any_ranks_give_the_symbols_of_the_heap(ranks, words, sizes):
    """In batches of three words, all in rounds, or the last or the long ones by a heap."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("FEW", "MOST", "BATCH"), (*sizes, 3), strict=True):
            patch.setattr(module, name, size)
        pairs = pairs_of(ranks)
        merged = merge_words(words, pairs)
    found = [[pairs.symbols[symbol].decode() for symbol in symbols] for symbols in merged]
    assert found == [merged_by_heap(word, ranks) for word in words]


def test_pairs_that_share_a_place_are_told_apart(monkeypatch):
    monkeypatch.setattr("edgellm.text.pairs._SLOT_BITS", 1)
    ranks = {"ab": 3, "bc": 1, "abc": 2, "ca": 0, "cab": 4}
    words = ["".join(random.Random(n).choices("abc", k=20)) for n in range(40)]
    pairs = pairs_of(ranks)
    for _ in range(2):
        found = [[pairs.symbols[symbol].decode() for symbol in symbols] for symbols in merge_words(words, pairs)]
        assert found == [merged_by_heap(word, ranks) for word in words]


@cache
def byte_level(pre: str) -> tuple[dict[str, Any], Any, Any]:
    metadata = oracles.train_byte_level(pre)
    return metadata, oracles.byte_level(metadata), oracles.byte_level(metadata, parse_special=True)


@pytest.mark.parametrize("pre", [names[0] for names in oracles.ALIKE])
def test_same_ids_as_tokenizers(pre, in_rounds):
    metadata, plain, special = byte_level(pre)
    ours = load_tokenizer(metadata)

    @settings(max_examples=60, deadline=None)
    @given(oracles.texts)
    def check(text):
        assert ours.encode(text) == plain.encode(text).ids
        assert ours.encode(text, parse_special=True) == special.encode(text).ids

    check()


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("space_prefix", [True, False])
def test_same_ids_as_sentencepiece(byte_fallback, space_prefix, in_rounds):
    metadata, original = oracles.train_sentencepiece(byte_fallback, space_prefix)
    ours = load_tokenizer(metadata)

    @settings(max_examples=150, deadline=None)
    @given(oracles.texts)
    def check(text):
        assert ours.encode(text) == original.encode(text)

    check()


def test_unused_tokens_are_taken_apart_again(monkeypatch):
    metadata, _ = oracles.train_sentencepiece()
    all_used = load_tokenizer(dict(metadata))
    types = metadata["tokenizer.ggml.token_type"].copy()
    types[np.flatnonzero(types == 1)[::5]] = 5
    metadata["tokenizer.ggml.token_type"] = types
    monkeypatch.setattr("edgellm.text.spm.CUT_FROM_CHARS", 0)
    one_by_one, in_rounds = load_tokenizer(metadata), load_tokenizer(metadata)
    expected = [one_by_one.encode(text) for text in oracles.CORPUS]
    assert expected != [all_used.encode(text) for text in oracles.CORPUS]
    for name in ("MANY", "FEW"):
        monkeypatch.setattr(module, name, 1)
    assert [in_rounds.encode(text) for text in oracles.CORPUS] == expected


def test_ids_of_texts_of_all_sorts():
    """As they are, with the sizes that texts have: in their own words, in each other's, in long runs."""
    chance = random.Random(11)
    parts = [word for text in oracles.CORPUS for word in text.split(" ")]
    parts += [
        "a" * 300,
        "漢字" * 200,
        "".join(map(chr, range(1, 0x250))),
        "x" * 40 + "\n" * 40,
        " \n \t  ",
        "👨\u200d👩",
    ]
    for pre in ("smollm", "llama-bpe", "qwen2", "gpt-4o", "bloom"):
        metadata, original, _ = byte_level(pre)
        ours = load_tokenizer(metadata)
        for _ in range(4):
            made = [
                "".join(chance.choices("abcdefghijklmnopqrstuvwxyzéДя漢 ", k=chance.randint(1, 30))) for _ in range(600)
            ]
            text = " ".join(chance.choices(parts, k=300) + made)
            assert ours.encode(text) == original.encode(text).ids


@pytest.mark.parametrize("change", [lambda m: [*m, *m[:200]], lambda m: m[::-1], lambda m: [*m[100:], *m[:100]]])
def test_merges_repeated_and_in_any_order(change, in_rounds):
    metadata = dict(byte_level("gpt-2")[0])
    metadata["tokenizer.ggml.merges"] = change(list(metadata["tokenizer.ggml.merges"]))
    ours, original = load_tokenizer(metadata), oracles.byte_level(metadata)
    for text in oracles.CORPUS:
        assert ours.encode(text) == original.encode(text).ids


def test_bytes_without_tokens_are_dropped(in_rounds):
    metadata = dict(byte_level("gpt-2")[0])
    metadata["tokenizer.ggml.tokens"] = [
        f"<gone {token}>" if token in ("x", "Ċ", "ã", "9") else token for token in metadata["tokenizer.ggml.tokens"]
    ]
    kept = [merge for merge in metadata["tokenizer.ggml.merges"] if not set(merge) & set("xĊã9")]
    metadata["tokenizer.ggml.merges"] = kept
    ours, original = load_tokenizer(metadata), oracles.byte_level(metadata)
    for text in [*oracles.CORPUS, "x", "xx\n\nx 9", "axb"]:
        assert ours.encode(text) == original.encode(text).ids


def test_a_merge_that_makes_no_token_counts_until_it_is_the_result(in_rounds):
    metadata = dict(byte_level("gpt-2")[0])
    tokens = list(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.merges"] = ["q ~", "q~ ^", *metadata["tokenizer.ggml.merges"]]
    metadata["tokenizer.ggml.tokens"] = [*tokens, "q~^"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], 1)
    metadata["tokenizer.ggml.pre"] = "superbpe"  # which leaves them in one word
    assert load_tokenizer(metadata).encode("q~^") == [len(tokens)]
    with pytest.raises(FormatError, match="'q~', a token that the vocabulary lacks"):
        load_tokenizer(metadata).encode("q~q")


def test_a_few_long_words_do_not_cost_the_others_rounds(monkeypatch):
    rounds = []
    plain = module._Row.join
    monkeypatch.setattr(module._Row, "join", lambda self, *args: (rounds.append(1), plain(self, *args))[1])
    chance = random.Random(5)
    words = ["".join(chance.choices("etaoin", k=k)) for k in [4] * 500 + [200] * 10]
    load_tokenizer(byte_level("gpt-2")[0]).encode(" ".join(words))
    assert 1 <= len(rounds) <= 6


def test_threads_that_encode_together_get_the_same_ids():
    metadata, original, _ = byte_level("smollm")
    ours = load_tokenizer(metadata)
    texts = []
    for n in range(12):
        chance = random.Random(n % 6)
        texts.append(" ".join("".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 12))) for _ in range(3000)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ours.encode, texts))
    assert found == [original.encode(text).ids for text in texts]
