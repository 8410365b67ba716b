"""Unigram, the tokenizer of XLM-R and T5, in a tokenizer.json."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

import numpy as np

from edgellm.convert.vocabulary.draft import Draft, Token
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.metaspace import names_of
from edgellm.convert.vocabulary.rules import flatten, pattern_of
from edgellm.errors import UnsupportedError
from edgellm.text.charsmap import CharsMap
from edgellm.text.preparing import CLUSTERS, CUT, OF_METASPACE, OF_REPLACE
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import TokenType

# What splits words and is stripped beside a space: Unicode's White_Space, but for NEL, which stays in the usual table.
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
    draft.made = frozenset(draft.ids) - names_of(file)
    unknown = model.number("unk_id")
    if unknown is None or unknown not in draft.tokens:
        raise model.wrong("unk_id", "the id of the token for what the vocabulary cannot spell")
    draft.tokens[unknown] = Token(draft.tokens[unknown].text, TokenType.UNKNOWN, draft.tokens[unknown].score)
    draft.roles["unk"] = unknown
    steps = flatten(file.record("normalizer"))
    table = None
    if steps and steps[0].text("type") == "Precompiled" and (raw := _charsmap(steps[0])):
        draft.settings["precompiled_charsmap"] = np.frombuffer(raw, np.uint8)
        table, steps = CharsMap(raw), steps[1:]
    _set_spaces(draft, file, steps, table)
    return draft


def _charsmap(step: Record) -> bytes:
    try:
        return base64.b64decode(step.text("precompiled_charsmap") or "", validate=True)
    except (binascii.Error, ValueError):
        raise step.wrong("precompiled_charsmap", "bytes in base64") from None


class _Spaces(NamedTuple):
    """What a normalizer does to the spaces of a text, behind its table of characters.

    steps:        the names of what it does, in order.
    collapses:    a run of them becomes one. marks: of U+2581, which white space no longer is.
    left, right:  those at its ends go.
    """

    steps: tuple[str, ...] = ()
    collapses: bool = False
    marks: bool = False
    left: bool = False
    right: bool = False


def _spaces(steps: list[Record]) -> _Spaces:
    """Raises UnsupportedError for steps that do something else."""
    found = _Spaces()
    for step in steps:
        kind = step.text("type")
        replaces = (pattern_of(step), step.values.get("content")) if kind == "Replace" else ()
        if kind == "Strip":
            left, right = (step.flag(f"strip_{side}") is not False for side in ("left", "right"))
            names = (*(["strip_left"] if left else []), *(["strip_right"] if right else []))
            found = found._replace(steps=found.steps + names, left=found.left or left, right=found.right or right)
        elif replaces in OF_REPLACE:
            name = OF_REPLACE[replaces]
            found = found._replace(steps=(*found.steps, name), collapses=True, marks=found.marks or "mark" in name)
        else:
            raise UnsupportedError(f"{step.file}: the normalizer {shown(step.values)} is not supported")
    return found


def _set_spaces(draft: Draft, file: Record, normalizer: list[Record], table: CharsMap | None) -> None:
    """Say which texts and words get a space in front and what becomes of the others.

    By name in a key of our own, and in the keys of GGUF as nearly as they can; where that is not near, a note.
    """
    spaces = _spaces(normalizer)
    prepends, splits, cutting = _words(file)
    draft.ours["steps"] = [*([CLUSTERS] if table else []), *spaces.steps, *cutting]
    stays = table is None or any(table.apply(char).strip(" ") for char in _WHITE + SPACE)
    near = not stays or not (spaces.steps or CUT in cutting)
    strips = cutting[0] == CUT or spaces.collapses
    if cutting[0] == CUT:
        near = near and prepends and (spaces.right or not spaces.marks)
    elif spaces.collapses:  # what is in front of a text makes no difference where it gets a space
        near = near and spaces.right and (prepends or spaces.left)
    else:
        near = near and not (spaces.left or spaces.right)
    if not near:
        what = shown([dict(step.values) for step in normalizer]), " ".join(cutting)
        draft.notes.append(
            f"{file.file}: what its normalizer ({what[0]}) and pre-tokenizer ({what[1]}) leave of white space is "
            "nothing that the keys of a GGUF file can say: programs other than edgellm may give some texts other ids"
        )
    draft.settings |= {"add_space_prefix": prepends, "remove_extra_whitespaces": strips}
    if splits:
        _set_apart(draft)


def _words(file: Record) -> tuple[bool, bool, list[str]]:
    """Whether words get a space in front, whether they are cut at spaces, and the names of the steps."""
    steps = flatten(file.record("pre_tokenizer"))
    names: list[str] = []
    prepends = splits = False
    for step in steps:
        kind = step.text("type")
        if kind == "WhitespaceSplit":
            names.append(CUT)
        elif kind == "Metaspace" and step.text("replacement") == SPACE and set(names) <= {CUT}:
            scheme = step.text("prepend_scheme") or ("never" if step.flag("add_prefix_space") is False else "always")
            prepends, splits = scheme == "always", step.flag("split") is not False
            if scheme not in ("always", "never"):
                raise UnsupportedError(
                    f"{file.file}: a Unigram model whose pre-tokenizer puts a space before {shown(scheme)} words; "
                    "edgellm knows Metaspace with prepend_scheme always or never"
                )
            names.append(OF_METASPACE[prepends, splits])
        else:
            raise UnsupportedError(f"{file.file}: the pre-tokenizer {shown(step.values)} is not supported")
    if set(names) <= {CUT}:
        raise UnsupportedError(
            f"{file.file}: a Unigram model whose pre-tokenizer ({shown(names)}) has no Metaspace leaves spaces as they "
            "are; edgellm knows those that make U+2581 of them"
        )
    return prepends, splits, names


def _set_apart(draft: Draft) -> None:
    """Tokens that reach from one word into the next are of no use where words are cut before they are spelled."""
    for token_id, token in draft.tokens.items():
        if token.type == TokenType.NORMAL and SPACE in token.text[1:]:
            draft.tokens[token_id] = token._replace(type=TokenType.UNUSED)
