"""Merges over characters by kernels: SentencePiece, and lists of merges whose tokens are plain text."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.formats.gguf import GGUFFile
from edgellm.kernels.word_records import LONGEST_WORD
from edgellm.text import Tokenizer, load_tokenizer, spm
from edgellm.text.compiled import words
from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.text.spm import SPACE, reaching_across, word_start, words_automata

from .. import oracles
from .test_automaton import cut_in_python, words_of

DOCS = Path(__file__).parents[3] / "docs"


@cache
def sentencepiece(byte_fallback: bool) -> tuple[dict[str, Any], Any]:
    return oracles.train_sentencepiece(byte_fallback)


def is_compiled(tokenizer: Tokenizer) -> bool:
    model: Any = tokenizer._model
    return model._turn.words(1, model._compiled) is not None


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_same_ids_as_sentencepiece(by_kernels: None, monkeypatch: pytest.MonkeyPatch, byte_fallback: bool) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 7)
    metadata, original = sentencepiece(byte_fallback)
    ours = load_tokenizer(metadata)

    @settings(max_examples=80)
    @given(oracles.texts)
    def check(text: str) -> None:
        assert ours.encode(text) == original.encode(text)

    check()
    long = ["a" * n for n in (LONGEST_WORD - 1, LONGEST_WORD, LONGEST_WORD + 1)]
    for text in [*oracles.CORPUS, "\n\n".join(oracles.CORPUS), "漢" * 200, "▁" * 300, *long]:
        assert ours.encode(text) == original.encode(text)
    assert is_compiled(ours)


def test_the_vocabulary_of_llama_2(by_kernels: None, shared: Path) -> None:
    with GGUFFile.open(shared / "vocab" / "llama-spm.gguf") as file:
        ours, original = load_tokenizer(file.metadata), oracles.sentencepiece_model(file.metadata)
        for text in [*oracles.CORPUS, *(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("a*.md")))]:
            assert ours.encode(text) == original.encode(text)
        assert is_compiled(ours)


def test_unused_tokens_stand_between_merges_alone(by_kernels: None) -> None:
    metadata = oracles.UNUSED_BETWEEN_MERGES
    ours, original = load_tokenizer(metadata), oracles.sentencepiece_model(metadata)
    for text in ["ab", "abc", "bc", "abab", "cabcb", "aabbcc", "xxab</s>y"]:
        assert ours.encode(text) == original.encode(text)
    assert is_compiled(ours)


SCORES = st.sampled_from([0.0, -0.0, -1.0, -2.5, 3.0, 1e-30, -1e30, float("inf"), float("-inf"), -7.0])


@settings(max_examples=60)
@given(st.lists(SCORES, min_size=700, max_size=700))
def test_ranks_are_in_the_order_of_scores(scores: list[float]) -> None:
    metadata = dict(sentencepiece(True)[0])
    metadata["tokenizer.ggml.scores"] = np.array(scores, np.float32)
    model: Any = load_tokenizer(metadata)._model
    made = np.flatnonzero(metadata["tokenizer.ggml.token_type"] == 1)
    ranks, wanted = model._ranks()[made], -np.array(scores, np.float32)[made]
    assert (np.unique(ranks, return_inverse=True)[1] == np.unique(wanted, return_inverse=True)[1]).all()


@pytest.mark.parametrize("splits", [False, True])
def test_tokens_that_reach_across_spaces(by_kernels: None, splits: bool) -> None:
    metadata = dict(sentencepiece(True)[0])
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[-3:] = [">▁", ">▁<", "▁▁a"]
    metadata |= {"tokenizer.ggml.tokens": tokens, "edgellm.tokenizer.split_at_spaces": splits}
    metadata["tokenizer.ggml.scores"] = np.array([*metadata["tokenizer.ggml.scores"][:-3], 5, 6, 7], np.float32)
    ours, wanted = load_tokenizer(metadata), load_tokenizer(metadata)
    wanted._model._turn._done = True  # type: ignore[attr-defined]
    for text in ["a> <b>  <c>   >", "x>  ab >", "  a   a", *oracles.CORPUS]:
        assert ours.encode(text) == wanted.encode(text)
    assert is_compiled(ours)
    assert (tokens.index(">▁<") in ours.encode("> <")) is not splits


@pytest.mark.parametrize("pre", ["gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"])
def test_merges_of_plain_text(by_kernels: None, pre: str) -> None:
    rule = PRETOKENIZERS[pre]
    original = oracles.train_plain(marks_spaces=rule.marks_spaces, pattern=rule.patterns[0])
    metadata = oracles.byte_level_metadata(original, pre, ["<eos>"]) | {"tokenizer.ggml.unknown_token_id": 0}
    metadata["tokenizer.ggml.token_type"][:257] = [2, *[6] * 256]
    ours = load_tokenizer(metadata | ({"tokenizer.ggml.model": "gemma4"} if pre == "gemma4" else {}))

    @settings(max_examples=50)
    @given(oracles.texts)
    def check(text: str) -> None:
        assert ours.encode(text) == original.encode(text).ids

    check()
    for text in [*oracles.CORPUS, "\n\n \n", "".join(oracles.CORPUS)]:
        assert ours.encode(text) == original.encode(text).ids
    assert is_compiled(ours)


@settings(max_examples=200)
@given(st.lists(st.text("ab>▁ぁ\0\n", max_size=5), max_size=9), st.text("ab>▁ぁ\0\n", max_size=30))
def test_words_are_cut_where_no_symbol_reaches(symbols: list[str], text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spm, "_WINDOW", 7)
        reaching = reaching_across(symbols)
    assert set(reaching) == {SPACE} | {char for symbol in symbols for char in re.findall(f"(?s).(?={SPACE})", symbol)}
    automata = words_automata(reaching)
    assert automata is not None
    assert words_of(cut_in_python, automata, text) == [word for word in word_start(reaching).split(text) if word]
    each = words_automata(None)
    assert each is not None
    assert words_of(cut_in_python, each, text) == [word for word in re.split(f"(?={SPACE})", text) if word]
