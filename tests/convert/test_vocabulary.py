"""A converted tokenizer gives the ids of the original, for every kind of tokenizer file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unicodedata import category, normalize, ucd_3_2_0

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edgellm.convert.vocabulary import tiktoken_file as families
from edgellm.convert.vocabulary import tokenizer_metadata
from edgellm.convert.vocabulary.tiktoken_file import Family
from edgellm.errors import UnsupportedError
from edgellm.text import Tokenizer, load_tokenizer
from edgellm.text.pretokenizers import PRETOKENIZERS
from tests.convert import tokenizer_folders as folders
from tests.text import oracles

N_VOCAB = 1000
SPELLED = st.sampled_from([*folders.SPECIAL, *folders.ADDED, "<s>", "</s>", "<unk>", "<turn>", "[CLS]", "[MASK]"])
TEXTS = st.lists(st.one_of(oracles.texts, SPELLED), max_size=4).map("".join)
LONG = [
    *oracles.CORPUS[:9],
    "".join(oracles.CORPUS[:9]),
    *(" " * n + "x" for n in range(20)),
    "\n\n\n  \n a",
    "aaaaaaa",
]


def converted(folder: Path) -> Tokenizer:
    metadata = tokenizer_metadata(folder, N_VOCAB)
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == N_VOCAB
    return load_tokenizer(metadata)


def same(
    ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], n: int = 100, texts: st.SearchStrategy = TEXTS
) -> None:
    for text in LONG:
        assert ours(text) == theirs(text), text

    @settings(max_examples=n, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        assert ours(text) == theirs(text)

    check()


def same_as_tokenizers(ours: Tokenizer, original: Original, n: int = 100, **options: st.SearchStrategy) -> None:
    """With special tokens in the text and around it, and with text only."""
    same(lambda text: ours.encode(text, True, True), lambda text: original.encode(text).ids, n, **options)
    original.encode_special_tokens = True
    same(ours.encode, lambda text: original.encode(text, add_special_tokens=False).ids, n // 2, **options)


# Of Kimi K2 there is no tokenizer.json; its pattern needs classes cut with each other.
@pytest.mark.parametrize("pre", [names[0] for names in oracles.ALIKE if names != ["kimi-k2"]])
def test_byte_level(tmp_path, pre):
    original = folders.byte_level(tmp_path, pre)
    found = tokenizer_metadata(tmp_path, N_VOCAB)["tokenizer.ggml.pre"]
    theirs, ours = PRETOKENIZERS[found], PRETOKENIZERS[pre]
    assert (theirs.patterns, theirs.nfc, theirs.ignore_merges) == (ours.patterns, ours.nfc, ours.ignore_merges)
    same_as_tokenizers(converted(tmp_path), original, 40)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_with_a_token_in_front(tmp_path, pre):
    original = folders.byte_level(tmp_path, pre, add_bos=True)
    ours = converted(tmp_path)
    assert ours.encode("", add_special=True) == [ours.bos_id] == [original.token_to_id("<|end|>")]
    same_as_tokenizers(ours, original)


def test_merges_may_be_texts(tmp_path):
    original = folders.byte_level(tmp_path, "smollm")
    values = folders.read_json(tmp_path / "tokenizer.json")
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    folders.write_json(tmp_path / "tokenizer.json", values)
    same_as_tokenizers(converted(tmp_path), original)


def test_gpt2_layout(tmp_path):
    original = folders.train_byte_level("gpt-2")
    original.add_special_tokens(["<|endoftext|>"])
    vocab, merges = original.model.save(str(tmp_path))
    assert Path(vocab).name == "vocab.json" and Path(merges).name == "merges.txt"
    values = folders.read_json(Path(vocab)) | {"<|endoftext|>": original.token_to_id("<|endoftext|>")}
    folders.write_json(Path(vocab), values)
    folders.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    ours = converted(tmp_path)
    assert ours.bos_id == ours.eos_id == original.token_to_id("<|endoftext|>")
    same_as_tokenizers(ours, original)


def test_gpt2_layout_of_an_unknown_class_is_refused(tmp_path):
    folders.train_byte_level("gpt-2").model.save(str(tmp_path))
    with pytest.raises(UnsupportedError, match="do not say how text is cut"):
        tokenizer_metadata(tmp_path, N_VOCAB)
    folders.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BloomTokenizerFast"})
    with pytest.raises(UnsupportedError, match="'BloomTokenizer'"):
        tokenizer_metadata(tmp_path, N_VOCAB)


@pytest.mark.parametrize(
    ("pre", "pattern"), [("llama-bpe", oracles.LLAMA3), ("qwen2", oracles.QWEN2), ("kimi-k2", oracles.KIMI)]
)
def test_tiktoken_file(tmp_path, monkeypatch, pre, pattern):
    tiktoken = pytest.importorskip("tiktoken")
    tokens = folders.ranked_tokens(pre)
    folders.tiktoken_file(tmp_path / ("tiktoken.model" if pre == "kimi-k2" else "tokenizer.model"), tokens)
    family = Family("Small", pre, lambda: folders.SPECIAL, {"bos": "<|end|>", "eos": "<|im_end|>"}, add_bos=True)
    monkeypatch.setitem(families.FAMILIES, len(tokens), family)
    special = {text: len(tokens) + i for i, text in enumerate(folders.SPECIAL)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    original = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    ours = converted(tmp_path)

    def theirs(text: str, **options: object) -> list[int]:
        return original.encode(normalize("NFC", text) if pre == "qwen2" else text, **options)

    same(ours.encode, lambda text: theirs(text, disallowed_special=()))
    same(lambda text: ours.encode(text, parse_special=True), lambda text: theirs(text, allowed_special="all"))
    assert ours.encode("", add_special=True) == [special["<|end|>"]] and ours.eos_id == special["<|im_end|>"]


def test_special_tokens_fill_the_rows_of_published_models():
    n_special = {n: len(set(family.special())) for n, family in families.FAMILIES.items()}
    assert n_special == {128_000: 256, 200_000: 2048, 151_643: 208, 163_584: 256}


def test_a_tiktoken_file_of_an_unknown_family_is_refused(tmp_path):
    folders.tiktoken_file(tmp_path / "small.tiktoken", folders.ranked_tokens("qwen2"))
    with pytest.raises(
        UnsupportedError, match=r"small\.tiktoken.*does not say how text is cut.*Llama 3 \(128,000\).* tokenizer\.json"
    ):
        tokenizer_metadata(tmp_path, N_VOCAB)


@pytest.mark.parametrize("n", families.FAMILIES)
def test_special_tokens_of_a_family_are_unique(n):
    special = families.FAMILIES[n].special()
    assert len(set(special)) == len(special) and set(families.FAMILIES[n].roles.values()) <= set(special)


def test_tekken(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    tokens = folders.ranked_tokens("tekken")
    folders.tekken(tmp_path / "tekken.json", tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    original = tiktoken.Encoding("small", pat_str=oracles.TEKKEN, mergeable_ranks=ranks, special_tokens={})
    ours = converted(tmp_path)
    same(ours.encode, lambda text: [rank + 30 for rank in original.encode(text)])
    assert ours.encode("", add_special=True) == [1]
    assert ours.encode("[INST]<SPECIAL_29>", parse_special=True) == [3, 29]
    assert ours.special_tokens["pad_token"] == "<pad>"


@pytest.mark.parametrize("space_prefix", [True, False])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_sentencepiece_model(tmp_path, space_prefix, byte_fallback):
    original = folders.sentencepiece(tmp_path, space_prefix=space_prefix, byte_fallback=byte_fallback)
    ours = converted(tmp_path)
    texts = oracles.texts  # user-defined tokens in it, but no control tokens
    same(ours.encode, original.encode, texts=texts)
    same(lambda text: ours.encode(text, True), lambda text: original.encode(text, add_bos=True), 30, texts=texts)


@pytest.mark.parametrize("space_prefix", [True, False])
@pytest.mark.parametrize("pieces", [[" "], ["  ", "▁▁▁"], ["x y", "x▁y"], [" x", "the "], ["\t ", " <t> "]], ids=str)
def test_user_defined_pieces_with_spaces(tmp_path: Path, pieces: list[str], space_prefix: bool) -> None:
    """They are looked for where spaces have become U+2581: with spaces in them they are never found."""
    original = folders.sentencepiece(tmp_path, space_prefix=space_prefix, user_defined=pieces)
    ours = converted(tmp_path)
    parts = st.sampled_from([" ", "  ", "   ", "▁", "▁▁", "x", "x y", " x", "the ", "\t ", " <t> ", "<t>", "\n"])
    texts = st.lists(parts, max_size=8).map("".join)
    same(ours.encode, original.encode, texts=texts)
    for token_id in range(3, 3 + len(pieces)):
        assert ours.token_bytes(token_id).decode() == original.id_to_piece(token_id).replace("▁", " ")


@pytest.mark.parametrize("space_prefix", [True, False])
def test_merges_made_of_a_sentencepiece_model(tmp_path, space_prefix):
    original = folders.of_sentencepiece(tmp_path, space_prefix)
    same_as_tokenizers(converted(tmp_path), original, 150)


def test_metaspace_is_as_the_model_it_was_made_of(tmp_path):
    folders.of_sentencepiece(tmp_path)
    plain = tokenizer_metadata(tmp_path, N_VOCAB)
    folders.of_sentencepiece(tmp_path, metaspace=True)
    ours = tokenizer_metadata(tmp_path, N_VOCAB)
    assert ours.pop("edgellm.tokenizer.prepend_scheme") == "first"
    assert plain.keys() == ours.keys()
    for key, value in plain.items():
        assert np.array_equal(value, ours[key]), key


def test_merges_trained_by_tokenizers(tmp_path):
    original = folders.trained_spaces(tmp_path)
    same_as_tokenizers(converted(tmp_path), original, 150)


@pytest.mark.parametrize(
    ("merges", "what"),
    [
        (["a b", "b c", "a bc"], "no merge makes the token 'abc' of 'ab'"),  # SentencePiece joins ab and c as well
        (["a b", "b c", "a bc", "d d", "ab c"], "the merges that make 'dd' stand between those of other tokens"),
    ],
)
def test_merges_that_scores_cannot_express_are_refused(tmp_path, merges, what):
    tokens = ["<unk>", "a", "b", "c", "d", "ab", "bc", "abc", "dd"]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "vocab": vocab, "merges": merges}
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if len(merges) < 5:
        del vocab["dd"]
    folders.write_json(tmp_path / "tokenizer.json", {"model": model, "normalizer": normalizer})
    with pytest.raises(UnsupportedError, match=f"{what}.*scores"):
        tokenizer_metadata(tmp_path, N_VOCAB)
    model["merges"] = ["a b", "b c", "ab c", "a bc"]
    vocab.pop("dd", None)
    folders.write_json(tmp_path / "tokenizer.json", {"model": model, "normalizer": normalizer})
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    same(converted(tmp_path).encode, lambda text: original.encode(text).ids, texts=st.text("abc x"))


def accents_agree(text: str) -> bool:
    """Whether no character is newer than the Unicode tables of `tokenizers`, or has changed its category since."""
    return all(ucd_3_2_0.category(char) == category(char) for char in text)


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(tmp_path, lowercase):
    original = folders.word_pieces(tmp_path, lowercase)
    ours = converted(tmp_path)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        assume(accents_agree(text))
        assert ours.encode(text, True, True) == original.encode(text).ids

    check()
    for text in LONG:
        assert ours.encode(text, True, True) == original.encode(text).ids
    (tmp_path / "tokenizer.json").unlink()
    folders.write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": lowercase})
    again = converted(tmp_path)
    for text in LONG:
        assert again.encode(text, True, True) == original.encode(text).ids


def test_a_japanese_bert_is_refused(tmp_path):
    folders.word_pieces(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    folders.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(UnsupportedError, match="BertJapaneseTokenizer"):
        tokenizer_metadata(tmp_path, N_VOCAB)


def test_a_padding_token_beyond_the_rows_of_sentencepiece(tmp_path: Path) -> None:
    """Alpaca's folders: the original tokenizer.model, and added_tokens.json with one more id than there are rows."""
    original = folders.sentencepiece(tmp_path)
    n = original.vocab_size()
    folders.write_json(tmp_path / "added_tokens.json", {"[PAD]": n})
    folders.write_json(tmp_path / "special_tokens_map.json", {"pad_token": "[PAD]"})
    metadata = tokenizer_metadata(tmp_path, n)
    assert list(metadata["tokenizer.ggml.tokens"])[n:] == ["[PAD]"]
    assert metadata["tokenizer.ggml.padding_token_id"] == n
    assert load_tokenizer(metadata).encode("a[PAD]", parse_special=True)[-1] == n


def test_frames_around_frames(tmp_path: Path) -> None:
    """Of several templates each puts its tokens around what the one before has made."""
    folders.byte_level(tmp_path, "gpt-2")
    values = folders.read_json(tmp_path / "tokenizer.json")
    end = next(token for token in values["added_tokens"] if token["special"])
    named = {end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {"SpecialToken": {"id": end["content"], "type_id": 0}}
    steps = [
        {"type": "TemplateProcessing", "single": [special, a], "pair": [special, a, b], "special_tokens": named},
        {"type": "TemplateProcessing", "single": [a, special], "pair": [a, b, special], "special_tokens": named},
    ]
    values["post_processor"] = {"type": "Sequence", "processors": steps}
    folders.write_json(tmp_path / "tokenizer.json", values)
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    assert converted(tmp_path).encode("ab", add_special=True) == original.encode("ab").ids


@pytest.mark.parametrize("normalizer", [None, {"type": "Strip", "strip_left": True, "strip_right": True}])
def test_a_unigram_model_without_a_table_is_told(tmp_path: Path, normalizer: object) -> None:
    vocab = [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -1.0], ["a", -2.0]]
    values = {
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "post_processor": None, "decoder": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }  # fmt: skip
    folders.write_json(tmp_path / "tokenizer.json", values)
    notes: list[str] = []
    ours = load_tokenizer(tokenizer_metadata(tmp_path, 5, notes))
    original = Original.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a", "  a  a ", "\ta\x85", " ", "", "a\u2581 \u2581a", "\x85\x1ca"):
        assert ours.encode(text) == original.encode(text).ids, text
    assert any("may give some texts other ids" in note for note in notes) == (normalizer is not None)
