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
from edgellm.text.ends import AMBIGUOUS, UNMISTAKABLE

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


BOTH_KINDS = [lambda: oracles.train_byte_level("smollm"), lambda: oracles.train_sentencepiece()[0]]


@pytest.fixture
def metadata() -> dict[str, Any]:
    return oracles.train_byte_level("smollm")


def test_empty_and_unsupported_kinds(metadata):
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.model is missing"):
        load_tokenizer({})
    for kind in ("rwkv", "plamo2", "none"):
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
        {"eos_token_id": "end"},
        {"eos_token_id": True},
        {"eos_token_id": 1.5},
        {"eos_token_id": ["a"]},
        {"add_bos_token": 3},
        {"add_eos_token": [True]},
        {"pre": ["gpt-2"]},
        {"token_type": [[1], [1, 2]]},
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


def with_token(metadata: dict[str, Any], text: str, token_type: int, *merges: str) -> dict[str, Any]:
    """One more token; its id is the last one."""
    return metadata | {
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], text],
        "tokenizer.ggml.token_type": np.append(metadata["tokenizer.ggml.token_type"], token_type).astype(np.int32),
        "tokenizer.ggml.merges": [*metadata["tokenizer.ggml.merges"], *merges],
    }


@pytest.mark.parametrize("name", [name.decode() for name in (*UNMISTAKABLE, *AMBIGUOUS)])
def test_a_token_with_the_name_of_an_end_is_one_whatever_its_type(metadata, name):
    for token_type in (1, 3):
        told = with_token(metadata, name, token_type) if name not in metadata["tokenizer.ggml.tokens"] else metadata
        token_id = told["tokenizer.ggml.tokens"].index(name)
        told["tokenizer.ggml.token_type"][token_id] = token_type
        tokenizer = load_tokenizer(told)
        assert token_id in tokenizer.stop_ids
        assert tokenizer.encode(f"x{name}", parse_special=True)[-1] == token_id
        assert tokenizer.encode(f"x{name}")[-1] != token_id
        assert any(repr(name) in note for note in tokenizer.notes) == (token_type == 1)
        assert load_tokenizer(told).decode([token_id], skip_special=True) == ""


def test_a_word_that_merges_make_is_text(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    told = with_token(with_token(with_token(metadata, "</", 1, "< /"), "s>", 1, "s >"), "</s>", 1, "</ s>")
    tokenizer = load_tokenizer(told)
    assert len(tokens) + 2 not in tokenizer.stop_ids
    assert tokenizer.decode([len(tokens) + 2], skip_special=True) == "</s>"


def test_a_plain_word_is_an_end_only_if_the_file_sets_it_apart(metadata):
    token_id = len(metadata["tokenizer.ggml.tokens"])
    assert token_id in load_tokenizer(with_token(metadata, "EOT", 3)).stop_ids
    assert token_id not in load_tokenizer(with_token(metadata, "EOT", 1)).stop_ids


def test_tags_of_a_page_are_no_ends(metadata):
    told = with_token(metadata, "</s>", 4)  # as in Gemma
    assert len(metadata["tokenizer.ggml.tokens"]) not in load_tokenizer(told).stop_ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.eos_token_id", [2, 5, 6, 7, 8]),
        ("tokenizer.ggml.eos_token_ids", np.array([2, 5, 6, 7, 8], np.int32)),
        ("edgellm.tokenizer.stop_ids", np.array([2, 5, 6, 7, 8], np.int32)),
    ],
)
def test_every_end_that_a_file_lists(metadata, key, value):
    tokenizer = load_tokenizer(metadata | {key: value})
    assert {2, 5, 6, 7, 8} < tokenizer.stop_ids
    assert tokenizer.eos_id == (2 if key.endswith("eos_token_id") else metadata["tokenizer.ggml.eos_token_id"])


@pytest.mark.parametrize("nothing", [-1, 2**32 - 1, 1_000_000])
def test_an_id_that_is_none_matters_where_it_is_needed(metadata, nothing):
    roles = ("bos", "eos", "unknown", "padding", "mask", "seperator")
    told = metadata | {f"tokenizer.ggml.{role}_token_id": nothing for role in roles}
    tokenizer = load_tokenizer(told)
    assert tokenizer.encode("some text", add_special=True) == load_tokenizer(metadata).encode("some text")
    assert tokenizer.bos_id is None and tokenizer.special_tokens == {}
    assert any("1000000, but the vocabulary" in note for note in tokenizer.notes) == (nothing == 1_000_000)
    needed = load_tokenizer(told | {"tokenizer.ggml.add_bos_token": True})
    assert needed.encode("some text") == tokenizer.encode("some text")
    with pytest.raises(FormatError, match=r"adds a bos token to texts, but has no tokenizer\.ggml\.bos_token_id"):
        needed.encode("some text", add_special=True)


def test_roles_by_habit_of_the_kind():
    metadata, _ = oracles.train_sentencepiece()
    bare = {key: value for key, value in metadata.items() if not key.endswith("_token_id")}
    ours, told = load_tokenizer(bare), load_tokenizer(metadata)
    assert (ours.bos_id, ours.eos_id) == (1, 2) and 2 in ours.stop_ids
    assert ours.special_tokens == told.special_tokens
    assert ours.encode("the fox", add_special=True) == told.encode("the fox", add_special=True)


def test_a_text_goes_without_the_token_of_a_habit_that_the_file_lacks():
    metadata = oracles.train_byte_level("llama-bpe")
    del metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.encode("hi", add_special=True) == tokenizer.encode("hi")
    assert any("texts go without the bos token" in note for note in tokenizer.notes)


@pytest.mark.parametrize("make", BOTH_KINDS)
def test_types_that_the_file_does_not_give_are_told_by_the_names(make):
    metadata = make()
    told = load_tokenizer(metadata)
    bare = load_tokenizer({key: value for key, value in metadata.items() if not key.endswith("token_type")})
    for text in ["the fox <|im_end|>\x07 漢<s>", oracles.CORPUS[0]]:  # user-defined tokens look like any other
        assert bare.encode(text, True, True) == told.encode(text, True, True)
    assert bare.stop_ids == told.stop_ids
    assert any("no tokenizer.ggml.token_type" in note for note in bare.notes)
    assert bare.decode([bare.eos_id], skip_special=True) == ""


@pytest.mark.parametrize("value", [np.arange(3), ["llama"], 3, True])
@pytest.mark.parametrize("make", BOTH_KINDS)
def test_an_architecture_that_is_no_text(make, value):
    with pytest.raises(
        FormatError, match=r"^general\.architecture is (an array|a whole number|true or false); expected"
    ):
        load_tokenizer(make() | {"general.architecture": value})


def test_lists_that_are_longer_than_the_vocabulary(metadata):
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer = load_tokenizer(metadata | {"tokenizer.ggml.token_type": np.append(types, [1, 1, 1]).astype(np.int32)})
    assert tokenizer.encode("some text") == load_tokenizer(metadata).encode("some text")
    assert any("entries for" in note for note in tokenizer.notes)


def test_keys_of_our_own_of_the_wrong_kind(metadata):
    for key, value in (("lstrip", "x"), ("stop_ids", [1.5]), ("single_word", [True])):
        with pytest.raises(FormatError, match=f"edgellm.tokenizer.{key} is"):
            _ = (
                load_tokenizer(metadata | {f"edgellm.tokenizer.{key}": value}).encode("a"),
                load_tokenizer(metadata | {f"edgellm.tokenizer.{key}": value}).stop_ids,
            )
    spaced, _ = oracles.train_sentencepiece()
    for key, value in (("prepend_scheme", "sometimes"), ("prepend_scheme", 3), ("split_at_spaces", "yes")):
        with pytest.raises(FormatError, match=f"edgellm.tokenizer.{key} is"):
            load_tokenizer(spaced | {f"edgellm.tokenizer.{key}": value})


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


def test_the_tokens_with_some_texts(metadata):
    tokenizer = load_tokenizer(metadata)
    shown = tokenizer.texts_of_tokens
    for texts in [(), ("e",), ("th", "zq"), ("a", "n", " "), ("\u00e9",)]:
        wanted = [text.encode() for text in texts]
        found = [token_id for token_id, own in enumerate(shown) if any(text in own for text in wanted)]
        assert tokenizer.ids_with_any(texts) == found


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
