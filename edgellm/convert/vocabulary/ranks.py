"""Byte-level BPE whose file lists tokens by rank, without merges: tiktoken's files and Mistral's tekken.json."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import kind_of, shown
from edgellm.errors import FormatError
from edgellm.text.bpe import CHAR_OF_BYTE
from edgellm.text.merging import merge_pairs


def put_ranked(draft: Draft, tokens: Sequence[bytes], first_id: int = 0) -> None:
    """Take tokens in the order of their ranks, with the merges that make them."""
    missing = set(range(256)) - {token[0] for token in tokens if len(token) == 1}
    if missing:
        raise FormatError(f"{draft.file}: the byte {min(missing)} has no token; expected one for every byte")
    for rank, token in enumerate(tokens):
        draft.put(first_id + rank, spelled(token))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    halves = [_halves(token, ranks) for token in tokens if len(token) > 1]
    draft.merges = [(spelled(pair[0]), spelled(pair[1])) for pair in halves if len(pair) == 2]
    draft.ignore_merges = True  # tiktoken looks for the whole word first


def spelled(token: bytes) -> str:
    """The bytes in GPT-2's printable characters."""
    return "".join([CHAR_OF_BYTE[byte] for byte in token])


def from_base64(text: Any, where: str) -> bytes:
    """The bytes of a token; FormatError when there are none."""
    if not isinstance(text, (str, bytes)):
        raise FormatError(f"{where} is {kind_of(text)}; expected base64")
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found = shown(text if isinstance(text, str) else text.decode(errors="replace"))
        raise FormatError(f"{where} is {found}; expected base64") from None
    if not token:
        raise FormatError(f"{where} is empty; expected at least one byte")
    return token


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What better-ranked tokens make of a token: the two that it is joined from.

    Whatever stands around the token in a text, these two meet there, for merges inside of it come before any
    that reach across its ends. A token that is left in more pieces is only ever found as a whole word.
    """
    limit = ranks[token]

    def rank(left: bytes, right: bytes) -> int | None:
        found = ranks.get(left + right)
        return None if found is None or found >= limit else found

    return merge_pairs([token[i : i + 1] for i in range(len(token))], rank)
