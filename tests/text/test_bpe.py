"""Byte-level BPE gives the ids of `tokenizers`, for every pre-tokenizer of the table."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edgellm.errors import FormatError, UnsupportedError
from edgellm.text import Tokenizer, load_tokenizer
from edgellm.text.pretokenizers import PRETOKENIZERS, _alike, _cut_by, pretokenizer
from edgellm.text.rule import recognised
from edgellm.text.vocabulary import Vocabulary

from . import oracles


@cache
def trained(pre: str) -> tuple[Tokenizer, Original, Original]:
    """Ours, and the original without and with special tokens parsed."""
    metadata = oracles.train_byte_level(pre)
    special = oracles.byte_level(metadata, parse_special=True)
    return load_tokenizer(metadata), oracles.byte_level(metadata), special


RULES = [names[0] for names in oracles.ALIKE]  # a name for each meaning


def test_every_rule_has_an_original_to_compare_with():
    plain = {name for name, rule in PRETOKENIZERS.items() if not rule.spells_bytes}  # below
    assert set(oracles.ORIGINAL_RULES) == set(PRETOKENIZERS) - plain
    assert plain == {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"}


@pytest.mark.parametrize("names", oracles.ALIKE, ids=lambda names: names[0])
def test_names_with_one_meaning(names):
    assert {PRETOKENIZERS[name] for name in names} == {PRETOKENIZERS[names[0]]}


@pytest.mark.parametrize("pre", RULES)
def test_same_ids_as_tokenizers(pre):
    ours, plain, special = trained(pre)

    @settings(max_examples=150, deadline=None)
    @given(oracles.texts)
    def check(text):
        assert ours.encode(text) == plain.encode(text).ids
        assert ours.encode(text, parse_special=True) == special.encode(text).ids

    check()


@pytest.mark.parametrize("pre", RULES)
def test_ascii_is_cut_the_same_way_with_and_without_regex(pre):
    rule = pretokenizer(pre)

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(max_codepoint=127), max_size=60))
    def check(text):
        words = [text]
        for cut in rule._unicode_cuts:
            words = [piece for word in words for piece in cut(word) if piece]
        assert rule.split(text) == words

    check()


@pytest.mark.parametrize("pre", RULES)
def test_words_are_those_of_the_original(pre):
    """Cutting alone: what a small vocabulary would not tell apart."""

    @settings(max_examples=150, deadline=None)
    @given(oracles.texts)
    def check(text):
        pieces = oracles.ORIGINAL_RULES[pre].pre_tokenize_str(text)
        assert pretokenizer(pre).split(text) == [text[start:end] for _, (start, end) in pieces]

    check()


def test_numbers_are_cut_in_threes_in_linear_time():
    for pre in ("superbpe", "tiny_aya", "afmoe"):
        words = pretokenizer(pre).split("1" * 100_001 + " ")
        assert words[:2] == ["11", "111"] and "".join(words) == "1" * 100_001 + " "


@pytest.mark.parametrize("between", ["\n ", "  ", "a", " a", "a ", "a" * 61 + " ", "é"])
def test_what_is_beyond_ascii_is_found_in_linear_time(between):
    text = (between * 20 + "é") * 2000
    assert "".join(_alike(text)) == text
    assert "".join(pretokenizer("gpt-2").split(text)) == text


@settings(max_examples=300, deadline=None)
@given(oracles.texts, st.booleans())
def test_decoding_gives_the_text_back(text, parse_special):
    ours, _, _ = trained("smollm")
    assert ours.decode(ours.encode(text, parse_special=parse_special)) == text


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_real_vocabularies_agree_with_tokenizers(shared, name):
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(shared / "vocab" / f"{name}.gguf") as file:
        compare(file.metadata)


def test_smollm2_agrees_with_tokenizers(smollm2):
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(smollm2) as file:
        compare(file.metadata)


def compare(metadata: Any) -> None:
    ours = load_tokenizer(metadata)
    plain, special = oracles.byte_level(metadata), oracles.byte_level(metadata, parse_special=True)

    @settings(max_examples=300, deadline=None)
    @given(oracles.texts)
    def check(text):
        assert ours.encode(text) == plain.encode(text).ids
        assert ours.encode(text, parse_special=True) == special.encode(text).ids

    check()
    for text in oracles.CORPUS:
        assert ours.encode(text) == plain.encode(text).ids


@pytest.mark.parametrize("text", ["a", " ", "ab", "漢", "\n", "1", "A", "."])
def test_a_long_word_takes_no_quadratic_time(text):
    text *= 50_000
    ours, plain, _ = trained("smollm")
    assert ours.encode(text) == plain.encode(text).ids


def test_lone_surrogates_become_replacement_characters():
    ours, _, _ = trained("smollm")
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("") == []


def test_words_beyond_the_cache_are_encoded_like_others(monkeypatch):
    monkeypatch.setattr("edgellm.text.remembered.MOST_REMEMBERED", 2)
    ours = load_tokenizer(oracles.train_byte_level("gpt-2"))
    text = "the quick brown fox jumps over the lazy dog"
    assert ours.encode(text) == trained("gpt-2")[1].encode(text).ids
    assert len(ours._model._words._known) <= 2


def test_ignored_merges_take_a_whole_word():
    metadata = oracles.train_byte_level("llama-bpe")
    n = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "Ġxqz"]  # no merge makes it
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], 1)
    assert load_tokenizer(metadata).encode(" xqz") == [n]
    assert n not in load_tokenizer(metadata | {"tokenizer.ggml.pre": "gpt-2"}).encode(" xqz")


def test_add_special_follows_the_file_then_the_habit_of_the_model():
    metadata = oracles.train_byte_level("llama-bpe")
    bos = metadata["tokenizer.ggml.bos_token_id"]
    plain = load_tokenizer(metadata).encode("hi")
    assert load_tokenizer(metadata).encode("hi", add_special=True) == [bos, *plain]
    told = metadata | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    assert load_tokenizer(told).encode("hi", add_special=True) == [*plain, bos]
    gpt2 = load_tokenizer(metadata | {"tokenizer.ggml.pre": "gpt-2"})
    assert gpt2.encode("hi", add_special=True) == gpt2.encode("hi")


def test_an_unknown_pretokenizer_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"'nonsense'.*smollm"):
        load_tokenizer(oracles.train_byte_level("gpt-2") | {"tokenizer.ggml.pre": "nonsense"})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o"])
def test_a_missing_pretokenizer_is_known_by_the_vocabulary(pre):
    metadata = oracles.train_byte_level(pre)
    named = load_tokenizer(dict(metadata))
    del metadata["tokenizer.ggml.pre"]
    ours = load_tokenizer(metadata)
    assert any("does not say how text is cut" in note and repr(pre) in note for note in ours.notes)
    for text in oracles.CORPUS:
        assert ours.encode(text) == named.encode(text)


def test_a_vocabulary_that_no_rule_leaves_whole_is_cut_by_default():
    metadata = oracles.train_byte_level("gpt-2")
    metadata["tokenizer.ggml.tokens"] = [
        "a1!Ċb" + token if 300 < i < 850 else token for i, token in enumerate(metadata["tokenizer.ggml.tokens"])
    ]
    metadata["tokenizer.ggml.merges"] = []
    del metadata["tokenizer.ggml.pre"]
    ours = load_tokenizer(metadata)
    assert any("no rule fits its tokens" in note and "'default'" in note for note in ours.notes)
    assert ours.encode("hi") == load_tokenizer(metadata | {"tokenizer.ggml.pre": "default"}).encode("hi")


@pytest.mark.parametrize("rule", dict.fromkeys(PRETOKENIZERS.values()), ids=lambda rule: rule.patterns[-1][:20])
def test_words_begin_at_spaces_between_characters(rule, monkeypatch):
    """Where a rule says so: what lies beyond ASCII is cut apart between such spaces, and that changes no word."""
    parts = ["a", "B", "12", " ", " ", " ", "  ", "\n", "\r\n", "\t", ".", ",", "'s", "'", "é", "漢", "ह्", "-", "/",
             "(", "|", "\u00a0", "\u3000", "🚀", "_", "<", "।", "\x1c", "\x85", "a" * 61, " b" * 30]  # fmt: skip
    monkeypatch.setattr("edgellm.text.pretokenizers._SPARSE", 0)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(parts), max_size=20).map("".join))
    def check(text):
        assert rule.split(text) == _cut_by(rule._unicode_cuts, text)

    check()


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_the_rules_of_real_vocabularies_are_recognised(shared, name):
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(shared / "vocab" / f"{name}.gguf") as file:
        assert recognised(Vocabulary(file.metadata)) == name


@pytest.mark.parametrize("merge", ["nospace", "three parts here", ""])
def test_a_merge_that_is_no_pair_is_refused(merge):
    metadata = oracles.train_byte_level("gpt-2")
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], merge]
    with pytest.raises(FormatError, match="two tokens with a space"):
        load_tokenizer(metadata).encode("text")


def test_a_merge_that_makes_no_token_is_refused():
    metadata = oracles.train_byte_level("gpt-2")
    metadata["tokenizer.ggml.merges"] = ["t e", *metadata["tokenizer.ggml.merges"]]
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = ["<gone>" if token == "te" else token for token in tokens]
    with pytest.raises(FormatError, match="'te', a token that the vocabulary lacks"):
        load_tokenizer(metadata).encode("te")


@pytest.mark.parametrize("pre", ["gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"])
def test_merges_of_plain_text(pre):
    rule = PRETOKENIZERS[pre]
    original = oracles.train_plain(marks_spaces=rule.marks_spaces, pattern=rule.patterns[0])
    metadata = oracles.byte_level_metadata(original, pre, ["<eos>"]) | {"tokenizer.ggml.unknown_token_id": 0}
    metadata["tokenizer.ggml.token_type"][:257] = [2, *[6] * 256]
    ours = load_tokenizer(metadata | ({"tokenizer.ggml.model": "gemma4"} if pre == "gemma4" else {}))

    @settings(max_examples=150, deadline=None)
    @given(oracles.texts)
    def check(text):
        ids = original.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == (text.replace("▁", " ") if rule.marks_spaces else text)

    check()
    assert ours.encode("", add_special=True) == ([ours.bos_id] if rule.add_bos else [])


def test_what_stands_behind_a_number_may_belong_to_its_word():
    """Threes are counted from the end of a word, and for the original's engine these characters do not end one."""
    for text in ("12345¹", "12345½ 6789", "12345a", "12345 67890", "1234é5678"):
        pieces = oracles.ORIGINAL_RULES["tiny_aya"].pre_tokenize_str(text)
        assert pretokenizer("tiny_aya").split(text) == [text[start:end] for _, (start, end) in pieces]
