"""WordPiece gives the ids of `tokenizers`."""

from __future__ import annotations

from functools import cache
from typing import Any
from unicodedata import ucd_3_2_0

import numpy as np
import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer as Original
from tokenizers import models, normalizers, pre_tokenizers, trainers

from edgellm.errors import FormatError
from edgellm.text import load_tokenizer

from . import oracles

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def original_model(vocab: dict[str, int], lowercase: bool) -> Original:
    original = Original(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    original.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    original.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return original


def metadata_of(vocab: dict[str, int], lowercase: bool) -> dict[str, Any]:
    def spell(token: str) -> str:
        if token in SPECIAL:
            return token
        return token[2:] if token.startswith("##") else "▁" + token

    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [spell(token) for token in tokens],
        "tokenizer.ggml.token_type": np.array([3 if token in SPECIAL else 1 for token in tokens], np.int32),
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.unknown_token_id": vocab["[UNK]"],
        "tokenizer.ggml.cls_token_id": vocab["[CLS]"],
        "tokenizer.ggml.seperator_token_id": vocab["[SEP]"],
    }


@cache
def trained(lowercase: bool):
    original = original_model({}, lowercase)
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    original.train_from_iterator(oracles.CORPUS, trainer)
    vocab = original.get_vocab()
    return load_tokenizer(metadata_of(vocab, lowercase)), original_model(vocab, lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
def test_same_ids_as_tokenizers(lowercase):
    ours, original = trained(lowercase)

    @settings(max_examples=300, deadline=None)
    @given(oracles.texts)
    @example("İ ΣΑΣ ǅ \x85 \u200d" + "a" * 101)
    def check(text):
        # `tokenizers` strips accents by an old version of Unicode; leave out what may be newer.
        text = "".join(char for char in text if ucd_3_2_0.category(char) != "Cn")
        assert ours.encode(text) == original.encode(text).ids

    check()


def test_special_tokens_and_decoding():
    ours, _ = trained(True)
    ids = ours.encode("The quick, brown fox", add_special=True)
    assert [ours.token_name(ids[0]), ours.token_name(ids[-1])] == ["[CLS]", "[SEP]"]
    assert ours.decode(ids, skip_special=True) == "the quick , brown fox"
    assert ours.encode("[SEP]", parse_special=True) == [ids[-1]]


def test_an_unknown_token_is_needed_for_a_word_that_cannot_be_spelled():
    metadata = metadata_of({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, True)
    del metadata["tokenizer.ggml.unknown_token_id"]
    assert load_tokenizer(metadata).encode("a") == [3]
    with pytest.raises(FormatError, match="unknown_token_id"):
        load_tokenizer(metadata).encode("b")
