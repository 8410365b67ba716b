"""SentencePiece BPE gives the ids of `sentencepiece`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from edgellm.errors import FormatError
from edgellm.text import Tokenizer, load_tokenizer

from . import oracles


@cache
def trained(byte_fallback: bool, space_prefix: bool) -> tuple[Tokenizer, SentencePieceProcessor]:
    metadata, original = oracles.train_sentencepiece(byte_fallback, space_prefix)
    return load_tokenizer(metadata), original


def check_against(ours: Tokenizer, original: SentencePieceProcessor, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(oracles.texts)
    def check(text):
        ids = original.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == original.decode(ids)

    check()
    for text in ["", *oracles.CORPUS, "".join(oracles.CORPUS)]:
        assert ours.encode(text) == original.encode(text)


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("space_prefix", [True, False])
def test_same_ids_and_text_as_sentencepiece(byte_fallback, space_prefix):
    check_against(*trained(byte_fallback, space_prefix), examples=300)


@settings(max_examples=200, deadline=None)
@given(oracles.texts)
def test_a_text_cut_in_words_gives_the_same_ids(text):
    ours, original = trained(True, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgellm.text.spm.CUT_FROM_CHARS", 0)
        assert ours.encode(text) == original.encode(text)


@settings(max_examples=300, deadline=None)
@given(oracles.texts, st.booleans(), st.booleans())
def test_decoding_gives_the_text_back(text, space_prefix, parse_special):
    ours, _ = trained(True, space_prefix)
    text = text.replace("▁", "_")  # which cannot be told from a space
    assert ours.decode(ours.encode(text, parse_special=parse_special)) == text


def compare(metadata: Any) -> None:
    check_against(load_tokenizer(metadata), oracles.sentencepiece_model(metadata), examples=200)


def test_the_vocabulary_of_llama_2_agrees_with_sentencepiece(shared):
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(shared / "vocab" / "llama-spm.gguf") as file:
        compare(file.metadata)


def test_gemma3_agrees_with_sentencepiece(gemma3):
    from edgellm.formats.gguf import GGUFFile

    with GGUFFile.open(gemma3) as file:
        compare(file.metadata)


@pytest.mark.parametrize("text", ["a", " ", "ab", "漢", "\n"])
def test_a_long_word_takes_no_quadratic_time(text):
    text *= 50_000
    ours, original = trained(True, True)
    assert ours.encode(text) == original.encode(text)


def test_control_tokens_are_found_only_when_asked_for():
    ours, _ = trained(True, True)
    turn = next(i for i in range(ours.n_vocab) if ours.token_name(i) == "<turn>")
    assert turn not in ours.encode("a<turn>b")
    ids = ours.encode("a<turn>b", parse_special=True)
    assert ids == [*ours.encode("a"), turn, *ours.encode("b")]
    assert ours.decode(ids) == "a<turn>b"
    assert ours.decode(ids, skip_special=True) == "ab"


def test_bos_is_added_unless_the_file_says_no():
    metadata, _ = oracles.train_sentencepiece()
    ours = load_tokenizer(metadata)
    assert ours.encode("hi", add_special=True) == [ours.bos_id, *ours.encode("hi")]
    silent = load_tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False})
    assert silent.encode("hi", add_special=True) == silent.encode("hi")


def test_unused_tokens_are_taken_apart_again():
    """As `sentencepiece` does: they may stand between two merges, but not in the result."""
    metadata = oracles.UNUSED_BETWEEN_MERGES
    ours, original = load_tokenizer(metadata), oracles.sentencepiece_model(metadata)
    for text in ["ab", "abc", "bc", "abab", "cabcb", "aabbcc"]:
        assert ours.encode(text) == original.encode(text)
    assert ours.encode("abc") == [7]
    assert ours.encode("ab") == [3, 4]


def test_white_space_behind_a_special_token_of_phi_3_is_swallowed():
    metadata, _ = oracles.train_sentencepiece()
    turn = metadata["tokenizer.ggml.tokens"].index("<turn>")
    phi3 = load_tokenizer(metadata | {"general.architecture": "phi3"})
    assert phi3.encode("<turn> \n a", parse_special=True) == [turn, *phi3.encode("a")]
    assert phi3.encode("<s> a", parse_special=True) == [phi3.bos_id, *phi3.encode(" a")]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("scores", None, "no tokenizer.ggml.scores"),
        ("scores", np.zeros(3, np.float32), "3 entries"),
        ("scores", "nan", "not a number"),
    ],
)
def test_scores_are_checked(key, value, message):
    metadata, _ = oracles.train_sentencepiece()
    if isinstance(value, str):
        value = np.full(len(metadata["tokenizer.ggml.tokens"]), np.nan, np.float32)
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FormatError, match=message):
        load_tokenizer(metadata)


@pytest.mark.parametrize("spelling", ["<0xZZ>", "<0x07>x"])
def test_a_byte_token_that_lacks_matters_where_the_byte_is_needed(spelling):
    """As in `tokenizers`: a character that has not all of its bytes is unknown."""
    metadata, _ = oracles.train_sentencepiece()
    tokens = metadata["tokenizer.ggml.tokens"]
    token_id = tokens.index("<0x07>")
    whole = load_tokenizer(metadata)
    tokens[token_id] = spelling
    ours = load_tokenizer(metadata)
    assert ours.encode("the\x08fox") == whole.encode("the\x08fox")
    unknown = metadata["tokenizer.ggml.unknown_token_id"]
    assert ours.encode("a\x07\x07b") == [i if i != token_id else unknown for i in whole.encode("a\x07b")]
    with pytest.raises(FormatError, match=spelling):
        ours.token_bytes(token_id)
    del metadata["tokenizer.ggml.unknown_token_id"]
    metadata["tokenizer.ggml.token_type"][unknown] = 1
    with pytest.raises(FormatError, match=r"no token for '\\x07', none for its byte <0x07>, and no unknown token"):
        load_tokenizer(metadata).encode("a\x07b")
    assert load_tokenizer(metadata).encode("the\x08fox") == whole.encode("the\x08fox")
