"""Broken and hostile tokenizer files: one clear error that names file and key, soon and in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.vocabulary import tiktoken_file as families
from edgellm.convert.vocabulary import tokenizer_metadata
from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError
from tests.convert import tokenizer_folders as folders
from tests.text import oracles

N_VOCAB = 1000


def refused(folder: Path, what: str, kind: type[EdgellmError] = FileProblem) -> None:
    with pytest.raises(kind, match=what) as found:
        tokenizer_metadata(folder, N_VOCAB)
    assert "\n" not in str(found.value) and len(str(found.value)) < 1500


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("good")
    folders.byte_level(folder, "smollm", add_bos=True)
    return folders.read_json(folder / "tokenizer.json")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "there is no tokenizer; expected tokenizer.json")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "malformed"),
        (b"[]", "a list; expected an object"),
        (b"{" * 100_000, "malformed|nested"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"model": NaN}', "NaN"),
        (b'{"model": {"type": "BPE", "type": "BPE"}}', "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number of 5000 digits"),
        (b"{}", "model is missing; expected an object"),
        (b'{"model": 5}', "model is a whole number; expected an object"),
        (b'{"model": {"type": "WordLevel"}}', "'WordLevel' model"),
        (b'{"model": {"vocab": []}}', "model.unk_id"),
        (b'{"model": {"type": "WordLevel"}}', "'WordLevel' model"),
        (b'{"model": {"type": 5}}', "model.type is a whole number; expected a text"),
    ],
)
def test_broken_json(tmp_path, text, what):
    (tmp_path / "tokenizer.json").write_bytes(text)
    refused(tmp_path, f"tokenizer.json.*({what})")


BROKEN = {
    "vocab a list": ({"model": {"vocab": [1]}}, r"model\.vocab is a list; expected an object"),
    "vocab missing": ({"model": {"vocab": None}}, r"model\.vocab is missing"),
    "merges an object": ({"model": {"merges": {}}}, r"model\.merges is an object; expected a list"),
    "id a text": ({"model": {"vocab": {"a": "5"}}}, "token 'a' has the id '5'; expected a whole number"),
    "id true": ({"model": {"vocab": {"a": True}}}, "has the id True"),
    "id a fraction": ({"model": {"vocab": {"a": 1.5}}}, "has the id 1.5"),
    "id negative": ({"model": {"vocab": {"a": -1}}}, "has the id -1"),
    "id large": ({"model": {"vocab": {"a": 10**15}}}, "embedding has 1000 rows"),
    "one id twice": ({"model": {"vocab": {"a": 5, "b": 5}}}, "the id 5 stands for '&' and 'a'"),
    "half a character": ({"model": {"vocab": {"\ud800": 5}}}, "half of a surrogate pair"),
    "a token without end": ({"model": {"vocab": {"a" * 600: 5}}}, "600 characters long"),
    "merge of three": ({"model": {"merges": ["a b c"]}}, "merges holds 'a b c'; expected pairs"),
    "merge of numbers": ({"model": {"merges": [[1, 2]]}}, r"merges holds \[1, 2\]"),
    "merge of nothing known": ({"model": {"merges": ["zzz a"]}}, "needs 'zzz', a token that the vocabulary lacks"),
    "merge makes nothing known": ({"model": {"merges": ["z z"]}}, "needs 'zz', a token that the vocabulary lacks"),
    "a suffix of words": ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix is '</w>'"),
    "dropout": ({"model": {"dropout": 0.1}}, "dropout makes ids random"),
    "added twice": ({"added_tokens": [{"id": 683, "content": "<a>"}, {"id": 684, "content": "<a>"}]}, "683 and 684"),
    "added without id": ({"added_tokens": [{"content": "<a>"}]}, "'<a>' has the id None"),
    "added without text": ({"added_tokens": [{"id": 900}]}, "token 900 is null; expected a text"),
    "added numbers": ({"added_tokens": [5]}, r"added_tokens\[0\] is a whole number; expected an object"),
    "added as another": ({"added_tokens": [{"id": 5, "content": "<a>"}]}, "the id 5 stands for"),
    "a step of numbers": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [5]}}, r"pretokenizers\[0\] is a"),
    "a split without pattern": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Isolated"}, {"type": "ByteLevel", "use_regex": False}]}},
        "pattern is missing",
    ),
    "a template of nothing": ({"post_processor": {"type": "TemplateProcessing", "single": []}}, "has the text 0 times"),
    "an unexplained token": (
        {"post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}},
        "which special_tokens does not explain",
    ),
    "two tokens in front": (
        {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [1, 2]}}, "single": [
            {"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}]}},
        r"\[1, 2\] on one side",
    ),
    "a token beyond": ({"post_processor": {"type": "BertProcessing", "cls": ["a", 990], "sep": ["b", 991]}}, "990"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_values(tmp_path, good, name):
    change, what = BROKEN[name]
    model = good["model"] | change.get("model", {})
    if name.startswith(("id", "one id", "half", "a token without")):
        model["vocab"] = good["model"]["vocab"] | change["model"]["vocab"]
        del model["vocab"]["a" if "a" not in change["model"]["vocab"] else "b"]
    folders.write_json(tmp_path / "tokenizer.json", good | change | {"model": model})
    refused(tmp_path, what)


def test_more_tokens_than_rows(tmp_path, good):
    folders.write_json(tmp_path / "tokenizer.json", good)
    with pytest.raises(FormatError, match="the model's embedding has 300 rows"):
        tokenizer_metadata(tmp_path, 300)


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("tokenizer_config", {"bos_token": 5}, "bos_token is a whole number; expected a text"),
        ("tokenizer_config", {"add_bos_token": "yes"}, "add_bos_token is a text; expected true or false"),
        ("tokenizer_config", {"chat_template": 5}, "chat_template is a whole number"),
        ("tokenizer_config", {"chat_template": [{"name": "a"}]}, r"chat_template\[0\].template is missing"),
        ("tokenizer_config", {"chat_template": "\ud800"}, "half of a surrogate pair"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "has the key 'x'"),
        ("tokenizer_config", {"added_tokens_decoder": {"900": 5}}, "900 is a whole number; expected an object"),
        ("tokenizer_config", {"added_tokens_decoder": {"5000": {"content": "a1b"}}}, "tokenizer_config.*1000 rows"),
        ("special_tokens_map", {"eos_token": []}, "special_tokens_map.json: eos_token is a list"),
        ("added_tokens", {"<x>": "5"}, "added_tokens.json: token '<x>' has the id '5'"),
        ("added_tokens", {"<x>": 10**12}, "added_tokens.json.*1000 rows"),
        ("generation_config", {"eos_token_id": ["a"]}, "generation_config.json: eos_token_id is .*expected a token id"),
        ("config", {"eos_token_id": {}}, "config.json: eos_token_id"),
        ("config", {"text_config": 5}, "config.json: text_config is a whole number"),
    ],
)
def test_broken_settings(tmp_path, good, name, values, what):
    folders.write_json(tmp_path / "tokenizer.json", good)
    folders.write_json(tmp_path / f"{name}.json", values)
    refused(tmp_path, what)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_json_of_anything(tmp_path_factory, good, data):
    """Some value of the file becomes another; the result is a tokenizer or one of our errors."""
    anything = st.sampled_from(
        [None, True, -1, 0, 3, 2**40, 1.5, "", "a", "\ud800", [], [5], ["a", 1], {}, {"type": "BPE"}]
    )
    values = {**good, "model": {**good["model"]}}
    path = data.draw(st.sampled_from(PATHS))
    holder: Any = values
    for key in path[:-1]:
        if not isinstance(holder, (dict, list)) or (isinstance(holder, list) and key >= len(holder)):
            return
        holder[key] = type(holder[key])(holder[key]) if isinstance(holder[key], (dict, list)) else holder[key]
        holder = holder[key]
    holder[path[-1]] = data.draw(anything)
    folder = tmp_path_factory.mktemp("any")
    folders.write_json(folder / "tokenizer.json", values)
    try:
        tokenizer_metadata(folder, N_VOCAB)
    except FileProblem as problem:
        assert "\n" not in str(problem)


PATHS = [
    ("model",), ("model", "type"), ("model", "vocab"), ("model", "merges"), ("model", "merges", 3),
    ("model", "vocab", "a"), ("model", "unk_token"), ("model", "ignore_merges"), ("model", "byte_fallback"),
    ("added_tokens",), ("added_tokens", 0), ("added_tokens", 0, "id"), ("added_tokens", 0, "content"),
    ("added_tokens", 1, "special"), ("normalizer",), ("pre_tokenizer",), ("pre_tokenizer", "type"),
    ("pre_tokenizer", "pretokenizers"), ("pre_tokenizer", "pretokenizers", 0), ("post_processor",),
    ("pre_tokenizer", "pretokenizers", 0, "type"), ("pre_tokenizer", "pretokenizers", 1, "use_regex"),
    ("post_processor", "processors"), ("post_processor", "processors", 1),
    ("post_processor", "processors", 1, "single"), ("post_processor", "processors", 1, "single", 0),
    ("post_processor", "processors", 1, "special_tokens"),
]  # fmt: skip


@pytest.fixture(scope="module")
def proto() -> bytes:
    return oracles.train_sentencepiece()[1].serialized_model_proto()


def test_a_cut_sentencepiece_model(tmp_path, proto):
    for n in (1, 2, 3, 100, len(proto) // 2, len(proto) - 1):
        (tmp_path / "tokenizer.model").write_bytes(proto[:n])
        refused(tmp_path, "tokenizer.model", FileProblem)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_sentencepiece_model_with_wrong_bytes(tmp_path_factory, proto, wrong):
    broken = bytearray(proto)
    for at, byte in wrong:
        broken[-1 - at % len(proto)] = byte
    folder = tmp_path_factory.mktemp("proto")
    (folder / "tokenizer.model").write_bytes(broken)
    try:
        tokenizer_metadata(folder, N_VOCAB)
    except FileProblem as problem:
        assert "\n" not in str(problem)


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return oracles._field(1, oracles._field(1, text) + oracles._field(2, score) + oracles._field(3, kind))


BPE = oracles._field(2, oracles._field(3, 2))
PLAIN = oracles._field(3, oracles._field(4, 0))


@pytest.mark.parametrize(
    ("proto", "what"),
    [
        (piece(b"<unk>", kind=2) + PLAIN, "is Unigram; edgellm knows BPE"),
        (piece(b"<unk>", kind=2) + BPE, "remove_extra_whitespaces"),
        (piece(b"a", float("nan")) + BPE + PLAIN, "piece 0 .* score that is not a number"),
        (piece(b"\xff") + BPE + PLAIN, "piece 0 .* no text"),
        (piece(b"a", kind=77) + BPE + PLAIN, "piece 0 .*type 77"),
        (piece(b"a") + piece(b"a") + BPE + PLAIN, "the token 'a' has the ids 0 and 1"),
        (piece(b"a" * 600) + BPE + PLAIN, "600 characters"),
        (piece(b"") * 1001 + BPE + PLAIN, "1001 pieces, but the model's embedding has 1000 rows"),
        (piece(b"a") + oracles._field(1, 5) + BPE + PLAIN, "piece 1 is a number; expected a message"),
        (piece(b"a") + BPE + oracles._field(3, oracles._field(2, b"x") + oracles._field(4, 0)), "is normalized by"),
        (piece(b"a") + BPE + oracles._field(3, oracles._field(4, 0) + oracles._field(5, 0)), "escape_whitespaces"),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
    ],
)
def test_sentencepiece_models_that_are_refused(tmp_path, proto, what):
    (tmp_path / "tokenizer.model").write_bytes(proto)
    refused(tmp_path, what)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"YQ== 0 0", "line 1 is"),
        (b"YQ==", "line 1 is"),
        (b"Y 0", 'the token of line 1 is "Y"; expected base64'),
        (b"\xff\xff== 0", "the token of line 1 is"),
        (b"== 0", "the token of line 1"),
        (b"YQ== 1", "line 1 is .* the rank 0"),
        (b"YQ== -1", "line 1 is"),
        (b"YQ== " + b"9" * 400, "line 1 is"),
        (b"YQ== 0", "edgellm knows Llama 3"),
        (b"version https://git-lfs.github.com/spec/v1", "line 1 is .*git-lfs"),
        (b"x\n" * 2000, "2000 tokens, but the model's embedding has 1000 rows"),
    ],
)
def test_broken_tiktoken_files(tmp_path, line, what):
    (tmp_path / "tokenizer.model").write_bytes(line)
    refused(tmp_path, f"tokenizer.model.*{what}")


def test_a_tiktoken_file_without_all_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, 2, families.FAMILIES[128_000])
    folders.tiktoken_file(tmp_path / "tokenizer.model", [b"a", b"b"])
    refused(tmp_path, "the byte 0 has no token")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pattern": "x+"}, 'config.pattern is "x\\+", which is none'),
        ({"pattern": None}, "config.pattern is null"),
        ({"default_vocab_size": 5000}, "default_vocab_size 5000"),
        ({"default_vocab_size": "x"}, "default_vocab_size is a text"),
        ({"default_num_special_tokens": 900}, "default_num_special_tokens 900"),
        ({"default_vocab_size": 900}, "config speaks of 870"),
        ({"version": "v13"}, "special_tokens is missing"),
    ],
)
def test_broken_tekken_files(tmp_path, change, what):
    folders.tekken(tmp_path / "tekken.json", folders.ranked_tokens("tekken"), **change)
    refused(tmp_path, f"tekken.json: .*{what}")


def test_tekken_tokens_that_are_no_base64(tmp_path):
    folders.tekken(tmp_path / "tekken.json", folders.ranked_tokens("tekken"))
    values = folders.read_json(tmp_path / "tekken.json")
    for wrong, what in (({"rank": 7}, "expected 3, its place"), ({"token_bytes": 5}, "whole number; expected base64"),
                        ({"token_bytes": "é"}, "expected base64")):  # fmt: skip
        entry = values["vocab"][3] | wrong
        folders.write_json(tmp_path / "tekken.json", values | {"vocab": [*values["vocab"][:3], entry]})
        refused(tmp_path, rf"vocab\[3\].*{what}")


def test_broken_gpt2_layout(tmp_path):
    folders.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    folders.write_json(tmp_path / "vocab.json", {"a": 0, "b": 1})
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\na b\n")
    refused(tmp_path, "merges.txt.*needs 'ab'")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    refused(tmp_path, "merges.txt is not UTF-8 at byte 0")
    (tmp_path / "merges.txt").write_bytes(b"\n" * 3_000_000)
    refused(tmp_path, "merges.txt has more than")


def test_a_wordpiece_vocabulary_without_its_special_tokens(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n##c\n", encoding="utf-8")
    refused(tmp_path, "unknown_token_id", FormatError)
    (tmp_path / "vocab.txt").write_text("a\nb\na\n", encoding="utf-8")
    refused(tmp_path, "the token 'a' has the ids 0 and 2", FormatError)


def test_wordpieces_of_another_kind(tmp_path):
    folders.word_pieces(tmp_path)
    good = folders.read_json(tmp_path / "tokenizer.json")
    for key, value, what in (
        ("normalizer", None, r"the normalizer is \[\]"),
        ("normalizer", good["normalizer"] | {"clean_text": False}, "clean_text"),
        ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("model", good["model"] | {"continuing_subword_prefix": "@@"}, "continuing_subword_prefix"),
        ("post_processor", None, "BERT has its cls token"),
    ):
        folders.write_json(tmp_path / "tokenizer.json", good | {key: value})
        refused(tmp_path, what, UnsupportedError)


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    refused(tmp_path, "there is no tokenizer")
