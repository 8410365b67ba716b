"""tokenizer.json, the file of Hugging Face's `tokenizers`: which kind of tokenizer it holds."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.convert.vocabulary.byte_level import read_byte_level
from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record
from edgellm.convert.vocabulary.metaspace import read_metaspace
from edgellm.convert.vocabulary.rules import flatten
from edgellm.convert.vocabulary.unigram import read_unigram
from edgellm.convert.vocabulary.wordpiece import read_wordpiece
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted


def read_tokenizer_json(file: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tokenizer.json, without the tokens that it adds."""
    model = file.record("model")
    if model is None:
        raise file.wrong("model", "an object with the vocabulary")
    kind = _kind(model)
    if kind not in ("BPE", "WordPiece", "Unigram"):
        raise UnsupportedError(
            f"{file.file}: the tokenizer is a {kind!r:.40} model; edgellm knows BPE (byte-level and SentencePiece), "
            "WordPiece and Unigram"
        )
    draft = _reader(kind, file)(file, model, n_vocab)
    _check_added_ids(file, draft)
    return draft


def _reader(kind: str, file: Record) -> Callable[[Record, Record, int], Draft]:
    if kind != "BPE":
        return read_wordpiece if kind == "WordPiece" else read_unigram
    spells_bytes = any(step.text("type") == "ByteLevel" for step in flatten(file.record("pre_tokenizer")))
    return read_byte_level if spells_bytes else read_metaspace


def _check_added_ids(file: Record, draft: Draft) -> None:
    """Raise FormatError for an added token with another id than `tokenizers` gives it, whatever the file says.

    It counts on from the size of the vocabulary, so ids behind a gap, or out of order, become others.
    """
    size = following = len(draft.ids)
    seen: set[str] = set()
    for added in file.records("added_tokens"):
        text, token_id = added.text("content"), added.values.get("id")
        if not text or text in seen:
            continue
        seen.add(text)
        is_new = text not in draft.ids and type(token_id) is int and token_id not in draft.tokens
        if is_new and token_id != following:
            raise FormatError(
                f"{file.file}: the added token {quoted(text)} has the id {token_id}, and `tokenizers`, which counts on "
                f"from the {size} tokens of the vocabulary, makes it {following}; give the ids between a token "
                "each, or the token this id"
            )
        following = max(following, 1 + draft.ids.get(text, following))


def _kind(model: Record) -> str:
    """The type of the model, which files of older versions leave to be seen."""
    if (kind := model.text("type")) is not None:
        return kind
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "Unigram"
