"""tokenizer.json, the file of Hugging Face's `tokenizers`: which kind of tokenizer it holds."""

from __future__ import annotations

from edgellm.convert.vocabulary.byte_level import read_byte_level
from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record
from edgellm.convert.vocabulary.metaspace import read_metaspace
from edgellm.convert.vocabulary.rules import flatten
from edgellm.convert.vocabulary.unigram import read_unigram
from edgellm.convert.vocabulary.wordpiece import read_wordpiece
from edgellm.errors import UnsupportedError


def read_tokenizer_json(file: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tokenizer.json, without the tokens that it adds."""
    model = file.record("model")
    if model is None:
        raise file.wrong("model", "an object with the vocabulary")
    kind = _kind(model)
    if kind == "BPE":
        spells_bytes = any(step.text("type") == "ByteLevel" for step in flatten(file.record("pre_tokenizer")))
        return (read_byte_level if spells_bytes else read_metaspace)(file, model, n_vocab)
    if kind == "WordPiece":
        return read_wordpiece(file, model, n_vocab)
    if kind == "Unigram":
        return read_unigram(file, model, n_vocab)
    raise UnsupportedError(
        f"{file.file}: the tokenizer is a {kind!r:.40} model; edgellm knows BPE (byte-level and SentencePiece), "
        "WordPiece and Unigram"
    )


def _kind(model: Record) -> str:
    """The type of the model, which files of older versions leave to be seen."""
    if (kind := model.text("type")) is not None:
        return kind
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "Unigram"
