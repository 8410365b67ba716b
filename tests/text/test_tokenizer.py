"""What all tokenizers share: checked vocabularies, conformance vectors, stop tokens, a quick start."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edgellm.errors import EdgellmError, FormatError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import load_tokenizer

from . import oracles


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "qwen2", "bert-bge"])
def test_conformance_vectors(shared, name):
    path = shared / "vocab" / f"{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    with GGUFFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata)
        for text, line in zip(texts, lines, strict=False):  # the last text is empty and has no line
            assert tokenizer.encode(text) == [int(word) for word in line.split()]
            assert name == "bert-bge" or tokenizer.decode(tokenizer.encode(text)) == text
        assert len(lines) > 40


@pytest.fixture
def metadata() -> dict[str, Any]:
    return oracles.train_byte_level("smollm")


def test_empty_and_unsupported_kinds(metadata):
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.model is missing"):
        load_tokenizer({})
    for kind in ("t5", "rwkv", "plamo2", "none"):
        with pytest.raises(UnsupportedError, match=kind):
            load_tokenizer(metadata | {"tokenizer.ggml.model": kind})


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": []},
        {"tokens": None},
        {"tokens": "abc"},
        {"tokens": [1, 2, 3]},
        {"tokens": np.arange(10)},
        {"merges": None},
        {"merges": 7},
        {"merges": [1]},
        {"model": 7},
        {"pre": 7},
        {"token_type": np.ones(3, np.int32)},
        {"token_type": np.ones(900, np.float32)},
        {"token_type": np.ones((30, 30), np.int32)},
        {"token_type": "normal"},
        {"bos_token_id": 1_000_000},
        {"bos_token_id": -1},
        {"eos_token_id": "end"},
        {"eos_token_id": True},
        {"add_bos_token": 3},
        {"add_bos_token": True, "bos_token_id": None},
    ],
    ids=str,
)
def test_a_bad_vocabulary_is_one_clear_error(metadata, change):
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(FormatError, match=r"^[^\n]+$"):
        load_tokenizer(metadata).encode("some text")


def test_duplicate_tokens_are_named(metadata):
    metadata["tokenizer.ggml.tokens"][5] = metadata["tokenizer.ggml.tokens"][3]
    with pytest.raises(FormatError, match="tokens 3 and 5 are both"):
        load_tokenizer(metadata).encode("some text")


def test_empty_tokens_may_stand_several_times(metadata):
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    padded = metadata | {
        "tokenizer.ggml.tokens": [*tokens, "", "", ""],
        "tokenizer.ggml.token_type": np.concatenate([types, [5, 3, 4]]).astype(np.int32),
    }
    text = "some text <|im_end|>"
    assert load_tokenizer(padded).encode(text, parse_special=True) == load_tokenizer(metadata).encode(
        text, parse_special=True
    )


@pytest.mark.parametrize("kind", [1, 3, 4, 6])
def test_a_token_that_is_not_utf8_is_an_error_where_it_is_used(metadata, kind):
    metadata["tokenizer.ggml.tokens"] = [token.encode() for token in metadata["tokenizer.ggml.tokens"]]
    metadata["tokenizer.ggml.tokens"][300] = b"\xff\xfe"
    metadata["tokenizer.ggml.token_type"][300] = kind
    tokenizer = load_tokenizer(metadata)
    if kind in (3, 4):
        with pytest.raises(FormatError, match="token 300 of the vocabulary is not UTF-8"):
            tokenizer.encode("some text", parse_special=True)
    else:
        tokenizer.encode("some text", parse_special=True)
    with pytest.raises(FormatError, match="token 300 of the vocabulary is not UTF-8"):
        tokenizer.token_bytes(300)


def test_an_id_that_does_not_exist_is_an_error(metadata):
    tokenizer = load_tokenizer(metadata)
    for token_id in (-1, tokenizer.n_vocab):
        for use in (tokenizer.token_bytes, tokenizer.token_name, tokenizer.stream().push):
            with pytest.raises(UsageError, match=f"token {token_id} does not exist"):
                use(token_id)
        with pytest.raises(UsageError):
            tokenizer.decode([token_id])


def test_stop_ids(metadata):
    names = metadata["tokenizer.ggml.tokens"]
    by_name = {name: i for i, name in enumerate(names)}
    eos = metadata["tokenizer.ggml.eos_token_id"]
    metadata["tokenizer.ggml.eot_token_id"] = 7
    found = load_tokenizer(metadata).stop_ids
    assert found == {eos, 7, by_name["<|end|>"], by_name["<|im_end|>"]}


def test_a_word_of_text_that_looks_like_a_stop_token_is_none(metadata):
    metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index("<|im_end|>")] = 1
    tokenizer = load_tokenizer(metadata)
    assert "<|im_end|>" not in {tokenizer.token_name(i) for i in tokenizer.stop_ids}


def test_an_end_that_ends_only_a_part_of_an_answer(metadata):
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.tokens"] = [*tokens, "<|return|>", "<|call|>"]
    metadata["tokenizer.ggml.token_type"] = np.append(types, [3, 3]).astype(np.int32)
    metadata["tokenizer.ggml.eos_token_id"] = len(tokens)
    tokenizer = load_tokenizer(metadata)
    names = {tokenizer.token_name(i) for i in tokenizer.stop_ids}
    assert names == {"<|return|>", "<|call|>", "<|im_end|>"}


def test_real_stop_ids(smollm2, gemma3):
    with GGUFFile.open(smollm2) as file:
        assert load_tokenizer(file.metadata).stop_ids == {0, 2}
    with GGUFFile.open(gemma3) as file:
        assert load_tokenizer(file.metadata).stop_ids == {1, 106}


def test_special_tokens_for_templates(metadata):
    metadata["tokenizer.ggml.unknown_token_id"] = 5
    unknown = metadata["tokenizer.ggml.tokens"][5]
    assert load_tokenizer(metadata).special_tokens == {
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "unk_token": unknown,
    }


def test_one_token_is_decoded_without_reading_the_others(metadata):
    class Lazy(list):
        def as_bytes(self):
            raise AssertionError("read every token")

    metadata["tokenizer.ggml.tokens"] = Lazy(metadata["tokenizer.ggml.tokens"])
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.token_bytes(40) == metadata["tokenizer.ggml.tokens"][40].encode()
    assert tokenizer.decode([40]) == tokenizer.token_name(40)


def test_any_metadata_gives_ids_or_an_edgellm_error(metadata):
    values = [
        None,
        0,
        -1,
        2**40,
        True,
        "x",
        "",
        1.5,
        [],
        ["a"],
        np.zeros(0),
        np.arange(900),
        np.full(905, np.nan),
    ]
    for key in metadata:
        for value in values:
            _use(metadata | {key: value})


def _use(metadata: dict[str, Any]) -> None:
    try:
        tokenizer = load_tokenizer(metadata)
        tokenizer.encode("text ▁ <|im_end|>", add_special=True, parse_special=True)
        assert tokenizer.stop_ids is not None
    except EdgellmError as error:
        assert "\n" not in str(error)


PROBE = """
import sys
from edgellm.formats.gguf import GGUFFile
from edgellm.text import load_tokenizer
load_tokenizer(GGUFFile.open(sys.argv[1]).metadata).encode("The capital of France is", True, True)
heavy = {"regex", "jinja2", "numba", "llvmlite", "sentencepiece", "gguf", "unicodedata"} & set(sys.modules)
print(sorted(heavy))
"""


def test_a_start_imports_nothing_heavy(smollm2, gemma3):
    for path in (smollm2, gemma3):
        done = subprocess.run([sys.executable, "-c", PROBE, path], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
