"""tokenizer.model of SentencePiece: pieces, scores and types from its protocol-buffers message.

Field numbers are those of sentencepiece_model.proto. Reading the bytes here, rather than by the package, keeps
hostile files away from native code, and reaches the settings that its interface does not show.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from edgellm.convert.vocabulary.draft import Draft
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.formats.strict_json import MAX_VALUES
from edgellm.text.vocabulary import TokenType

FILE = "tokenizer.model"
_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
_FLOAT = struct.Struct("<f")

Fields = dict[int, list[Any]]


def is_sentencepiece(raw: bytes) -> bool:
    """Whether a file may be such a message: it begins with a piece, where a tiktoken file has base64."""
    return raw[:1] == b"\n"


def read_sentencepiece(raw: bytes, n_vocab: int) -> Draft:
    """The vocabulary of a SentencePiece BPE model.

    Raises FormatError for bytes that are no such message, UnsupportedError for another kind of model and for a
    preparation of text that the field's programs do not do.
    """
    message = _fields(raw, "the model")
    trainer = _fields(_last(message, 2, bytes, b""), "the trainer's settings")
    normalizer = _fields(_last(message, 3, bytes, b""), "the normalizer's settings")
    _refuse_others(trainer, normalizer)
    draft = Draft(FILE, n_vocab, "llama")
    pieces = message.get(1, [])
    if len(pieces) > n_vocab:
        raise FormatError(
            f"{FILE} has {len(pieces)} pieces, but the model's embedding has {n_vocab} rows; "
            "the tokenizer is another model's"
        )
    for token_id, piece in enumerate(pieces):
        _put_piece(draft, token_id, piece)
    for role, field, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1)):
        token_id = _last(trainer, field, int, default)
        if 0 <= token_id < len(pieces):  # -1 stands for none, and is written as a number of 64 bits
            draft.roles[role] = token_id
    draft.settings["add_space_prefix"] = bool(_last(normalizer, 3, int, 1))
    draft.settings["remove_extra_whitespaces"] = False
    return draft


def _put_piece(draft: Draft, token_id: int, raw: Any) -> None:
    piece = _fields(raw, f"piece {token_id}")
    text, score = _last(piece, 1, bytes, b""), _last(piece, 2, float, 0.0)
    kind = _last(piece, 3, int, TokenType.NORMAL)
    try:
        token_type = TokenType(kind)
        decoded = text.decode()
    except ValueError:
        raise FormatError(f"{FILE}: piece {token_id} ({text[:40]!r}, type {kind}) is no text of a known type") from None
    if score != score:
        raise FormatError(f"{FILE}: piece {token_id} ({quoted(decoded)}) has a score that is not a number")
    if token_type == TokenType.USER_DEFINED and " " in decoded:
        token_type = TokenType.UNUSED  # it is looked for where spaces have become U+2581, and so never found
    draft.put(token_id, decoded, token_type, score)


def _refuse_others(trainer: Fields, normalizer: Fields) -> None:
    kind = _last(trainer, 3, int, 1)
    if kind != 2:
        name = _MODEL_TYPES.get(kind, f"type {kind}")
        raise UnsupportedError(f"{FILE}: the SentencePiece model is {name}; edgellm knows BPE")
    if _last(normalizer, 2, bytes, b""):
        name = _last(normalizer, 1, bytes, b"").decode(errors="replace")
        raise UnsupportedError(f"{FILE}: text is normalized by {quoted(name)}; edgellm knows identity")
    if _last(normalizer, 4, int, 1):
        raise UnsupportedError(
            f"{FILE}: repeated spaces are removed (remove_extra_whitespaces), which edgellm does not do"
        )
    if not _last(normalizer, 5, int, 1) or _last(trainer, 24, int, 0):
        raise UnsupportedError(
            f"{FILE}: spaces do not become a U+2581 before the word "
            "(escape_whitespaces, treat_whitespace_as_suffix); edgellm knows only that"
        )


def _last(fields: Fields, number: int, kind: type, default: Any) -> Any:
    """A field's value; the last one counts when there are several."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, kind):
        raise FormatError(f"{FILE}: field {number} is a {type(value).__name__}; expected a {kind.__name__}")
    return value


def _fields(raw: Any, what: str) -> Fields:
    """All values of a message, by the number of their field."""
    if not isinstance(raw, bytes):
        raise FormatError(f"{FILE}: {what} is a number; expected a message")
    fields: Fields = {}
    try:
        for n, (number, value) in enumerate(_values(raw)):
            if n > MAX_VALUES:
                raise FormatError(f"{FILE}: {what} has more than {MAX_VALUES} values; no tokenizer is that large")
            fields.setdefault(number, []).append(value)
    except (IndexError, struct.error):
        raise FormatError(f"{FILE}: {what} is cut off or no message of SentencePiece") from None
    return fields


def _values(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in the wire format: numbers, texts and messages as bytes, floats."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value
        elif kind == 2:
            size, at = _varint(raw, at)
            if size > len(raw) - at:
                raise IndexError
            yield tag >> 3, raw[at : at + size]
            at += size
        elif kind == 5:
            yield tag >> 3, _FLOAT.unpack_from(raw, at)[0]
            at += 4
        elif kind == 1:
            yield tag >> 3, struct.unpack_from("<d", raw, at)[0]
            at += 8
        else:
            raise IndexError


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where the next field begins."""
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise IndexError
