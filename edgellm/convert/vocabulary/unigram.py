"""Unigram, the tokenizer of XLM-R and T5, in a tokenizer.json."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from edgellm.convert.vocabulary.draft import Draft, Token
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.rules import flatten, pattern_of
from edgellm.errors import UnsupportedError
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import TokenType

_SPACES = (" {2,}", "\\s+", " +")  # runs of spaces that become one


def read_unigram(file: Record, model: Record, n_vocab: int) -> Draft:
    """The vocabulary with its scores, and how texts are prepared. UnsupportedError for what edgellm cannot do."""
    if model.flag("byte_fallback"):
        raise UnsupportedError(f"{file.file}: model.byte_fallback is true; edgellm knows Unigram with an unknown token")
    draft = Draft(file.file, n_vocab, "t5")
    for token_id, entry in enumerate(model.list("vocab")):
        if type(entry) is not list or len(entry) != 2 or type(entry[1]) not in (int, float):
            raise model.wrong("vocab", "a list of tokens with their scores")
        draft.put(token_id, entry[0], score=float(entry[1]))
    unknown = model.number("unk_id")
    if unknown is None or unknown not in draft.tokens:
        raise model.wrong("unk_id", "the id of the token for what the vocabulary cannot spell")
    draft.tokens[unknown] = Token(draft.tokens[unknown].text, TokenType.UNKNOWN, draft.tokens[unknown].score)
    draft.roles["unk"] = unknown
    draft.settings |= _normalizing(file) | _spacing(file)
    if "precompiled_charsmap" not in draft.settings and not _joins_spaces(file):
        raise UnsupportedError(
            f"{file.file}: a Unigram model without precompiled_charsmap keeps runs of spaces and other white space; "
            "edgellm knows those that make one space of each"
        )
    return draft


def _joins_spaces(file: Record) -> bool:
    """Whether all white space becomes one space, and none is left at the ends, without a charsmap."""
    steps = list(flatten(file.record("normalizer")))
    replaced = {pattern_of(step) for step in steps if step.text("type") == "Replace"}
    return "\\s+" in replaced and any(step.text("type") == "Strip" for step in steps)


def _normalizing(file: Record) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in flatten(file.record("normalizer")):
        kind = step.text("type")
        if kind == "Precompiled" and not found:
            try:
                raw = base64.b64decode(step.text("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, ValueError):
                raise step.wrong("precompiled_charsmap", "bytes in base64") from None
            if raw:
                found["precompiled_charsmap"] = np.frombuffer(raw, np.uint8)
        elif kind == "Strip" or (kind == "Replace" and pattern_of(step) in _SPACES
                                 and step.values.get("content") in (" ", SPACE)):  # fmt: skip
            continue  # as words are cut, it makes no difference
        else:
            raise UnsupportedError(f"{file.file}: the normalizer {shown(step.values)} is not supported")
    return found


def _spacing(file: Record) -> dict[str, bool]:
    """A space in front of every word; runs of spaces count as one, and none is left at the end."""
    scheme = None
    for step in flatten(file.record("pre_tokenizer")):
        kind = step.text("type")
        if kind == "Metaspace" and step.text("replacement") == SPACE and scheme is None:
            scheme = step.text("prepend_scheme") or ("never" if step.flag("add_prefix_space") is False else "always")
        elif kind != "WhitespaceSplit":
            raise UnsupportedError(f"{file.file}: the pre-tokenizer {shown(step.values)} is not supported")
    if scheme not in ("always", "never"):
        raise UnsupportedError(
            f"{file.file}: a Unigram model whose pre-tokenizer puts a space before {scheme or 'no'} words; edgellm "
            "knows Metaspace with prepend_scheme always or never"
        )
    return {"add_space_prefix": scheme == "always", "remove_extra_whitespaces": True}
