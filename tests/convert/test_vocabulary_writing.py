"""An exported tokenizer gives the same ids in transformers, and comes back as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from transformers import AutoTokenizer

from edgellm.convert.vocabulary import tokenizer_metadata, write_tokenizer
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import load_tokenizer
from edgellm.text.vocabulary import as_bytes
from tests.convert import tokenizer_folders as folders
from tests.convert.test_vocabulary import LONG, TEXTS, accents_agree
from tests.text import oracles

MODEL_TYPES = {"gpt-2": "gpt2", "llama-bpe": "llama", "llama-spm": "llama", "qwen2": "qwen2", "bert-bge": "bert"}


def load(folder: Path, model_type: str | None = None) -> Any:
    if model_type:
        folders.write_json(folder / "config.json", {"model_type": model_type})
    return AutoTokenizer.from_pretrained(folder)


def spaced(tokens: Any) -> list[bytes]:
    """The tokens with spaces for U+2581: user-defined tokens can be spelled either way."""
    return [token.replace("▁".encode(), b" ") for token in as_bytes(tokens)]


def same_there_and_back(metadata: Mapping[str, Any], folder: Path, n: int = 100, model_type: str | None = None) -> Any:
    """The tokenizer that transformers loads, after comparing."""
    write_tokenizer(metadata, folder)
    ours, theirs = load_tokenizer(metadata), load(folder, model_type)
    again = tokenizer_metadata(folder, ours.n_vocab)
    back = load_tokenizer(again)
    assert spaced(again["tokenizer.ggml.tokens"]) == spaced(metadata["tokenizer.ggml.tokens"])
    assert (ours.special_tokens, ours.stop_ids) == (back.special_tokens, back.stop_ids)
    is_bert = metadata["tokenizer.ggml.model"] == "bert"

    def check(text: str) -> None:
        ids = ours.encode(text, add_special=True, parse_special=True)
        assert theirs(text).input_ids == ids == back.encode(text, add_special=True, parse_special=True)
        plain = ours.encode(text, parse_special=True)
        assert theirs(text, add_special_tokens=False).input_ids == plain == back.encode(text, parse_special=True)

    @settings(max_examples=n, deadline=None)
    @given(TEXTS)
    def check_any(text: str) -> None:
        assume(not is_bert or accents_agree(text))
        check(text)

    check_any()
    for text in LONG:
        check(text)
    return theirs


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3", "deepseek-coder"]
)
def test_byte_level(tmp_path, pre):
    metadata = oracles.train_byte_level(pre)
    same_there_and_back(metadata, tmp_path)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_tokens_around_a_text(tmp_path, add_bos, add_eos):
    flags = {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos}
    same_there_and_back(oracles.train_byte_level("llama-bpe") | flags, tmp_path, 20)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece(tmp_path, space_prefix):
    metadata, _ = oracles.train_sentencepiece(space_prefix=space_prefix)
    if space_prefix:  # after a user-defined token, `tokenizers` puts another space, and SentencePiece does not
        types = metadata["tokenizer.ggml.token_type"]
        metadata["tokenizer.ggml.token_type"] = np.where(types == 4, 3, types).astype(np.int32)
    same_there_and_back(metadata, tmp_path)


def test_wordpiece(tmp_path):
    folders.word_pieces(tmp_path)
    metadata = tokenizer_metadata(tmp_path, 600)
    out = tmp_path / "out"
    same_there_and_back(metadata, out)


def test_rows_without_a_token_come_back(tmp_path):
    folders.byte_level(tmp_path, "qwen2")
    metadata = tokenizer_metadata(tmp_path, 800)
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD799]" and metadata["tokenizer.ggml.token_type"][-1] == 5
    write_tokenizer(metadata, tmp_path / "out")
    again = tokenizer_metadata(tmp_path / "out", 800)
    assert metadata["tokenizer.ggml.tokens"] == again["tokenizer.ggml.tokens"]
    assert (metadata["tokenizer.ggml.token_type"] == again["tokenizer.ggml.token_type"]).all()


def test_templates_and_turn_ends_come_back(tmp_path):
    metadata = oracles.train_byte_level("llama-bpe")
    tokens = metadata["tokenizer.ggml.tokens"]
    eot = tokens.index("<|im_start|>")
    metadata |= {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.ggml.eot_token_id": eot,
        "llama.context_length": 77,
        "general.architecture": "llama",
    }
    write_tokenizer(metadata, tmp_path)
    theirs = load(tmp_path)
    assert theirs.chat_template == {"default": metadata["tokenizer.chat_template"], "tool_use": "{{ tools }}"}
    assert theirs.model_max_length == 77
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|end|>hi"
    again = tokenizer_metadata(tmp_path, len(tokens))
    for key in metadata:
        if "chat_template" in key or "eot" in key:
            assert again[key] == metadata[key]


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_real_vocabularies(shared, tmp_path, name):
    """The conformance texts and random ones, through transformers and back."""
    with GGUFFile.open(shared / "vocab" / f"{name}.gguf") as file:
        theirs = same_there_and_back(file.metadata, tmp_path, 60, MODEL_TYPES[name])
    with open(shared / "vocab" / f"{name}.gguf.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    expected = (shared / "vocab" / f"{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    assert len(texts) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert theirs(text, add_special_tokens=False).input_ids == [int(i) for i in ids.split()]


def test_smollm2(smollm2, tmp_path):
    with GGUFFile.open(smollm2) as file:
        theirs = same_there_and_back(file.metadata, tmp_path, 60, "llama")
        prompt = theirs.apply_chat_template([{"role": "user", "content": "Why is the sky blue?"}], tokenize=False)
        assert "<|im_start|>user\nWhy is the sky blue?<|im_end|>" in prompt


def test_a_merge_without_tokens_is_refused(tmp_path):
    metadata = oracles.train_byte_level("gpt-2")
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "zzz yyy"]
    with pytest.raises(FormatError, match="zzz yyy"):
        write_tokenizer(metadata, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unused_pieces_that_merging_makes_are_refused(tmp_path):
    metadata, _ = oracles.train_sentencepiece()
    types = metadata["tokenizer.ggml.token_type"]
    types[metadata["tokenizer.ggml.tokens"].index("the")] = 5
    with pytest.raises(UnsupportedError, match="'the' is marked as unused"):
        write_tokenizer(metadata, tmp_path)


def test_a_piece_that_cannot_be_spelled_is_refused(tmp_path):
    metadata, _ = oracles.train_sentencepiece()
    metadata["tokenizer.ggml.tokens"][-1] = "t\u0f00"
    with pytest.raises(UnsupportedError, match="holds '\u0f00', which has no token itself"):
        write_tokenizer(metadata, tmp_path)
