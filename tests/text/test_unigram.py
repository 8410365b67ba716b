"""Unigram gives the ids of `tokenizers`, and its normalization is that of `sentencepiece`."""

from __future__ import annotations

import contextlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Original

from edgellm.convert.vocabulary import tokenizer_metadata
from edgellm.convert.vocabulary.sentencepiece_model import _fields, _last
from edgellm.errors import FormatError, UnsupportedError
from edgellm.text import Tokenizer, load_tokenizer
from edgellm.text.charsmap import CharsMap

from . import oracles

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
# Among others what the normalization of XLM-R writes otherwise: ligatures, full width, spaces of many kinds.
CHARS = (
    "abcdefgh ijklmno pqrstu vwxyz ABC .,:;!? 0123 äöüßéèñ ﬁ ﬂ \uff21\uff22\uff43 ① ½ ² \u3000\u00a0\t\n 中文 ㈱ Ω ç ­"
)


@cache
def trained_with(rule: str) -> tuple[sentencepiece.SentencePieceProcessor, bytes]:
    """A model, and the table of characters that it was trained with."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in oracles.CORPUS for line in text.splitlines() if line.strip()),
        model_writer=model, model_type="unigram", vocab_size=300, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name=rule,
    )  # fmt: skip
    message = _fields(model.getvalue(), "the model")
    table = _last(_fields(_last(message, 3, bytes, b""), "the normalizer"), 2, bytes, b"")
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), table


@pytest.fixture(scope="module")
def trained() -> sentencepiece.SentencePieceProcessor:
    return trained_with("nmt_nfkc")[0]


@pytest.fixture(scope="module")
def charsmap() -> bytes:
    return trained_with("nmt_nfkc")[1]


@pytest.fixture(scope="module")
def original(trained: sentencepiece.SentencePieceProcessor, charsmap: bytes) -> Original:
    """As XLM-R's tokenizer.json has it, with tokens in its order."""
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(3, trained.get_piece_size())]
    vocab = [(text, 0.0) for text in SPECIAL] + pieces
    made = Original(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens(SPECIAL)
    return made


def saved(original: Original, folder: Path) -> Path:
    original.save(str(folder / "tokenizer.json"))
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>"}
    names = {f"{role}_token": text for role, text in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def ours(original: Original, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = saved(original, tmp_path_factory.mktemp("unigram"))
    return load_tokenizer(tokenizer_metadata(folder, original.get_vocab_size()))


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(CHARS), max_size=60))
@example(text="")
@example(text="  two  spaces ")
@example(text="中文 unknown 中")
@example(text="ﬁne \uff21\uff22\uff11 ½")
@example(text="a" * 500)
@example(text="NEL\x85is white \x85 space\x85")
@example(text="\ufb01\u0301ne \u2460\u0308 \uff21\u0301 e\u0301")
def test_ids_are_those_of_tokenizers(ours: Tokenizer, original: Original, text: str) -> None:
    assert ours.encode(text, add_special=True) == original.encode(text).ids


NORMALIZERS = {
    "table": lambda table: table,
    "table, runs": lambda table: normalizers.Sequence([table, normalizers.Replace(Regex(" {2,}"), " ")]),
    "table, runs to marks": lambda table: normalizers.Sequence([table, normalizers.Replace(Regex(" {2,}"), "\u2581")]),
    "table, end, runs": lambda table: normalizers.Sequence(
        [table, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    ),
    "table, ends, runs": lambda table: normalizers.Sequence(
        [table, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    ),
    "no table": lambda table: normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]),
}
WORDS = {
    "words": lambda: pre_tokenizers.Metaspace(),
    "whole": lambda: pre_tokenizers.Metaspace(split=False),
    "never": lambda: pre_tokenizers.Metaspace(prepend_scheme="never"),
    "white, words": lambda: pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    "words, white": lambda: pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()]),
    "white, never": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="never")]
    ),
}
# What the keys of GGUF alone cannot say, which is told: behind these, other programs give a few texts other ids.
TOLD = {
    ("table, runs to marks", "white, words"),
    *(("table, runs", words) for words in ("words", "whole", "words, white", "never")),
    *(("table, runs to marks", words) for words in ("words", "whole", "words, white", "never")),
    ("table, end, runs", "never"),
    *((normalizer, "white, never") for normalizer in NORMALIZERS),
    *(("no table", words) for words in WORDS),
}


@pytest.mark.parametrize("reaching", [False, True])
@pytest.mark.parametrize("words", list(WORDS))
@pytest.mark.parametrize("normalizer", list(NORMALIZERS))
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc"])
def test_spaces_and_marks_are_what_they_are_for_tokenizers(
    rule: str, normalizer: str, words: str, reaching: bool, tmp_path: Path
) -> None:
    """Texts with U+2581 and all kinds of spaces, and tokens that reach across words: equal ids, or a refusal."""
    trained, raw = trained_with(rule)
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(3, trained.get_piece_size())]
    across = [("\u2581the\u2581", -3.0), ("\u2581\u2581", -4.0), ("e\u2581t", -5.0)] if reaching else []
    original = Original(models.Unigram([(text, 0.0) for text in SPECIAL] + pieces + across, unk_id=3))
    original.normalizer = NORMALIZERS[normalizer](normalizers.Precompiled(raw))
    original.pre_tokenizer = WORDS[words]()
    original.add_special_tokens(SPECIAL)
    notes: list[str] = []
    ours = load_tokenizer(tokenizer_metadata(saved(original, tmp_path), original.get_vocab_size(), notes))
    leaves_white = rule == "nfkc" and ("white" in words or normalizer != "table")
    assert any("white space" in note for note in notes) == ((normalizer, words) in TOLD or leaves_white)
    random = np.random.default_rng(1)
    for n in random.integers(0, 9, 400):
        text = "".join(random.choice(list("abtheo\u2581  .\t\n\r\x85\x1c\u3000\u4e2dA\u0301\ufb01"), n))
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids, text


def test_a_whole_corpus(ours: Tokenizer, original: Original) -> None:
    for text in oracles.CORPUS:
        assert ours.encode(text, add_special=True) == original.encode(text).ids


def test_texts_come_back(ours: Tokenizer) -> None:
    for text in ("The quick brown fox", "a", ""):
        assert ours.decode(ours.encode(text, add_special=True), skip_special=True) == text


def test_pairs(ours: Tokenizer, original: Original) -> None:
    ids, parts = ours.encode_pair("a question", "an answer")
    assert ids == original.encode("a question", "an answer").ids
    assert set(parts) == {0}


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(CHARS) | st.characters(codec="utf-8"), max_size=40))
def test_the_table_of_characters(charsmap: bytes, trained: sentencepiece.SentencePieceProcessor, text: str) -> None:
    got = " ".join(CharsMap(charsmap).apply(text).split(" ")).split(" ")
    want = trained.normalize(text).replace("▁", " ").split(" ")
    assert [part for part in got if part] == [part for part in want if part]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        st.sampled_from(CHARS + "\u0301\u0308\u200d\u1100\u1161\u0915\u094d\r\x85") | st.characters(codec="utf-8")
    )
)
@example(text="A\u0301\r\n\uff21\u0301\ufb01\u0308")
def test_the_table_by_clusters(charsmap: bytes, text: str) -> None:
    assert CharsMap(charsmap).apply_to_clusters(text) == normalizers.Precompiled(charsmap).normalize_str(text)


def test_steps_that_are_none(original: Original, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(saved(original, tmp_path), original.get_vocab_size())
    assert metadata["edgellm.tokenizer.steps"] == ["clusters", "join_spaces", "cut_at_white", "marked_words"]
    for wrong, line in ((["clusters", "dance"], "'dance'"), ("clusters", "a text"), (3, "a whole number")):
        with pytest.raises(FormatError, match=line):
            load_tokenizer(metadata | {"edgellm.tokenizer.steps": wrong})
    del metadata["tokenizer.ggml.precompiled_charsmap"]
    with pytest.raises(FormatError, match="'clusters'"):
        load_tokenizer(metadata)


@pytest.mark.parametrize("raw", [b"", b"\0\0\0\0", b"\xff\xff\xff\x7f1234", b"\4\0\0\0", b"\3\0\0\0abcd"])
def test_tables_that_are_none(raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"a precompiled_charsmap of .* it is damaged"):
        CharsMap(raw)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_tables_are_said_or_passed_over(charsmap: bytes, data: st.DataObject) -> None:
    raw = bytearray(charsmap)
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        CharsMap(bytes(raw[: data.draw(st.integers(4, len(raw)))])).apply(CHARS)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"byte_fallback": True}, "model.byte_fallback is true"),
        ({"unk_id": None}, "unk_id"),
        ({"vocab": [["a"]]}, "vocab"),
    ],
)
def test_models_that_are_not_known(original: Original, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    values = json.loads((saved(original, tmp_path) / "tokenizer.json").read_text())
    values["model"] |= changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises((FormatError, UnsupportedError), match=line):
        tokenizer_metadata(tmp_path, original.get_vocab_size())


def test_the_original_model_beside_it_may_be_one_that_is_not_read(original: Original, tmp_path: Path) -> None:
    saved(original, tmp_path)
    alone = tokenizer_metadata(tmp_path, original.get_vocab_size())
    (tmp_path / "tokenizer.model").write_bytes(trained_with("nmt_nfkc")[0].serialized_model_proto())
    both = tokenizer_metadata(tmp_path, original.get_vocab_size())
    assert both["tokenizer.ggml.tokens"] == alone["tokenizer.ggml.tokens"]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match="the SentencePiece model is Unigram"):
        tokenizer_metadata(tmp_path, original.get_vocab_size())


def test_what_the_file_holds(original: Original, charsmap: bytes, tmp_path: Path) -> None:
    """As llama.cpp reads it."""
    metadata = tokenizer_metadata(saved(original, tmp_path), original.get_vocab_size())
    assert metadata["tokenizer.ggml.model"] == "t5"
    assert metadata["tokenizer.ggml.precompiled_charsmap"].tobytes() == charsmap
    assert metadata["tokenizer.ggml.add_bos_token"] and metadata["tokenizer.ggml.add_eos_token"]
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.unknown_token_id"]) == (0, 3)
    assert metadata["tokenizer.ggml.scores"].dtype == np.float32
