"""Unigram, the tokenizer of XLM-R and T5, in a tokenizer.json."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

import numpy as np

from edgellm.convert.vocabulary.draft import Draft, Token
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.rules import flatten, pattern_of
from edgellm.errors import UnsupportedError
from edgellm.text.charsmap import CharsMap
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import TokenType

_RUNS = (" {2,}", " +", "\\s+")  # patterns of runs of spaces that become one
# What splits words and is stripped beside a space: Unicode's White_Space. Of it, NEL alone stays in the usual table.
_WHITE = "\t\n\f\r\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


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
    steps = flatten(file.record("normalizer"))
    if not steps or steps[0].text("type") != "Precompiled" or not (raw := _charsmap(steps[0])):
        raise UnsupportedError(
            f"{file.file}: a Unigram model without precompiled_charsmap keeps runs of spaces and other white space; "
            "edgellm knows those whose normalizer begins with one"
        )
    draft.settings["precompiled_charsmap"] = np.frombuffer(raw, np.uint8)
    _set_spaces(draft, file, steps[1:], CharsMap(raw))
    return draft


def _charsmap(step: Record) -> bytes:
    try:
        return base64.b64decode(step.text("precompiled_charsmap") or "", validate=True)
    except (binascii.Error, ValueError):
        raise step.wrong("precompiled_charsmap", "bytes in base64") from None


class _Spaces(NamedTuple):
    """What a normalizer does to the spaces of a text, behind its table of characters.

    collapses:    a run of them becomes one. marks: of U+2581, which white space no longer is.
    left, right:  those at its ends go.
    """

    collapses: bool = False
    marks: bool = False
    left: bool = False
    right: bool = False


def _spaces(steps: list[Record]) -> _Spaces:
    """Raises UnsupportedError for steps that do something else."""
    found = _Spaces()
    for step in steps:
        kind, content = step.text("type"), step.values.get("content")
        if kind == "Strip" and not found.marks:
            left, right = (step.flag(side) is not False for side in ("strip_left", "strip_right"))
            found = found._replace(left=found.left or left, right=found.right or right)
        elif kind == "Replace" and pattern_of(step) in _RUNS and content in (" ", SPACE) and not found.marks:
            found = found._replace(collapses=True, marks=content == SPACE)
        else:
            raise UnsupportedError(f"{step.file}: the normalizer {shown(step.values)} is not supported")
    return found


def _set_spaces(draft: Draft, file: Record, normalizer: list[Record], charsmap: CharsMap) -> None:
    """Say which texts and words get a space in front and what becomes of the others, in the keys of a GGUF file."""
    spaces = _spaces(normalizer)
    scheme, splits_first, splits = _words(file)
    cuts = any(step.text("type") == "WhitespaceSplit" for step in flatten(file.record("pre_tokenizer")))
    if scheme not in ("always", "never"):
        raise UnsupportedError(
            f"{file.file}: a Unigram model whose pre-tokenizer puts a space before {scheme or 'no'} words; edgellm "
            "knows Metaspace with prepend_scheme always or never"
        )
    stays = any(charsmap.apply(char).strip(" ") for char in _WHITE + SPACE)
    if stays and (cuts or spaces != _Spaces()):
        raise UnsupportedError(
            f"{file.file}: its precompiled_charsmap leaves other white space than spaces, at which words are cut; "
            "edgellm knows those that make spaces of it"
        )
    keeps_last = False
    if splits_first:
        is_known = scheme == "always" and (spaces.right or not spaces.marks)
        strips = True
    elif spaces.collapses:
        # What is in front of a text makes no difference where it gets a space.
        is_known = spaces.left and spaces.right if scheme == "never" else True
        strips, keeps_last = True, not spaces.right
    else:
        is_known, strips = not (spaces.left or spaces.right), False
    if not is_known:
        raise UnsupportedError(
            f"{file.file}: what its normalizer ({shown([dict(step.values) for step in normalizer])}) and pre-tokenizer "
            f"(prepend_scheme {scheme}) leave of spaces is nothing that a GGUF file can say"
        )
    draft.settings |= {"add_space_prefix": scheme == "always", "remove_extra_whitespaces": strips}
    if keeps_last:
        draft.ours["keeps_last_space"] = True
    if splits:
        _set_apart(draft)


def _words(file: Record) -> tuple[str | None, bool, bool]:
    """The scheme of the Metaspace; whether words are cut at white space before it, and at spaces by it or behind it."""
    scheme, splits_first, splits = None, False, False
    for step in flatten(file.record("pre_tokenizer")):
        kind = step.text("type")
        if kind == "Metaspace" and step.text("replacement") == SPACE and scheme is None:
            scheme = step.text("prepend_scheme") or ("never" if step.flag("add_prefix_space") is False else "always")
            splits = splits or step.flag("split") is not False
        elif kind == "WhitespaceSplit":
            splits_first = splits_first or scheme is None
        else:
            raise UnsupportedError(f"{file.file}: the pre-tokenizer {shown(step.values)} is not supported")
    return scheme, splits_first, splits


def _set_apart(draft: Draft) -> None:
    """Tokens that reach from one word into the next are of no use where words are cut before they are spelled."""
    for token_id, token in draft.tokens.items():
        if token.type == TokenType.NORMAL and SPACE in token.text[1:]:
            draft.tokens[token_id] = token._replace(type=TokenType.UNUSED)
