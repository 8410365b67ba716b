"""SentencePiece byte-pair encoding: the tokenizer of Llama 2, Mistral and Gemma.

A text is not cut into words. Spaces become "▁", and neighbouring characters are joined as long as they make
a token, the one with the highest score first. A character without a token is spelled in byte tokens
(`<0x0A>`). Follows `sentencepiece` (model type BPE, identity normalization).
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cached_property

import numpy as np

from edgellm.errors import FormatError
from edgellm.text.merging import merge_pairs
from edgellm.text.provenance import only_written
from edgellm.text.special_tokens import SpecialTokens
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

SPACE = "▁"
UNKNOWN = " ⁇ ".encode()  # what stands for a character that the vocabulary could not encode
CUT_FROM_CHARS = 4096  # a longer text is cut in words, and each merged alone and remembered
CACHE_WORDS = 50_000  # distinct words whose ids are remembered
CACHE_WORD_CHARS = 64  # longer ones are too rare to keep


class SentencePieceModel:
    """Encodes plain text by the scores of a vocabulary."""

    splits_user_defined = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.scores is None:
            raise FormatError(f"the file has no {PREFIX}scores; a tokenizer of the llama kind needs them")
        self._vocabulary = vocabulary
        self._scores = vocabulary.scores.astype(np.float32).data  # items of a memoryview come quickly
        self.begin = vocabulary.added("bos", True)
        self.end = vocabulary.added("eos", False)
        self._unknown = vocabulary.role_id("unknown")
        self.space_prefix = vocabulary.flag("add_space_prefix", True)
        self._prefix = SPACE if self.space_prefix else ""
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, control: Set[int] = frozenset()) -> list[int]:
        """The ids of a text that holds no control tokens; user-defined tokens are found here.

        Those in `control` are found only where a template wrote them.
        """
        may_be = only_written(text, control, len(self._prefix)) if control else None
        text = self._prefix + text.replace(" ", SPACE)
        ids: list[int] = []
        for piece in self._user_defined.split(text, may_be):
            if isinstance(piece, int):
                ids.append(piece)
            elif len(piece) < CUT_FROM_CHARS:
                ids += self._merge(piece)
            else:
                for word in self._word_start.split(piece):
                    ids += self._merge_cached(word)
        return self._join_unknown(ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if self._vocabulary.is_type(token_id, TokenType.BYTE):
            return bytes([_byte_value(token)])
        if self._vocabulary.is_type(token_id, TokenType.UNKNOWN):
            return UNKNOWN
        return token.replace(SPACE.encode(), b" ")

    def _merge(self, text: str) -> list[int]:
        ids, scores, mergeable = self._vocabulary.ids, self._scores, self._mergeable
        halves: dict[bytes, tuple[bytes, bytes]] = {}

        def rank(left: bytes, right: bytes) -> float | None:
            token_id = ids.get(left + right)
            if token_id is None or not mergeable[token_id]:
                return None
            if token_id in self._unused:
                halves[left + right] = left, right
            return -scores[token_id]

        symbols = merge_pairs([char.encode() for char in text], rank)
        while halves and any(symbol in halves for symbol in symbols):
            # An unused token may stand between two merges, but not in the result.
            symbols = [part for symbol in symbols for part in halves.get(symbol, (symbol,))]
        found: list[int] = []
        for symbol in symbols:
            token_id = ids.get(symbol)
            found += self._spell(symbol) if token_id is None or not mergeable[token_id] else (token_id,)
        return found

    def _merge_cached(self, word: str) -> list[int]:
        known = self._words.get(word)
        if known is None:
            known = self._merge(word)
            if len(word) <= CACHE_WORD_CHARS:
                if len(self._words) >= CACHE_WORDS:
                    self._words.clear()
                self._words[word] = known
        return known

    def _spell(self, symbol: bytes) -> list[int]:
        """The byte tokens of a character that has no token itself, or the unknown token."""
        if self._byte_ids:
            return [self._byte_ids[byte] for byte in symbol]
        if self._unknown is None:
            raise FormatError(f"the vocabulary lacks {symbol.decode()!r}, byte tokens and an unknown token")
        return [self._unknown]

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown characters is one unknown token."""
        if self._byte_ids or self._unknown not in ids:
            return ids
        previous = [-1, *ids[:-1]]
        return [now for before, now in zip(previous, ids, strict=True) if not before == now == self._unknown]

    @cached_property
    def _mergeable(self) -> bytes:
        """1 for each token that merging may make; in a text, the spelling of a control token is just text."""
        return np.isin(self._vocabulary.types, (TokenType.NORMAL, TokenType.UNUSED)).tobytes()

    @cached_property
    def _unused(self) -> frozenset[int]:
        return frozenset(self._vocabulary.of_type(TokenType.UNUSED))

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        """Tokens that stand for themselves wherever they occur, in the spelling of the text with "▁"."""
        spelled = self._vocabulary.spelled(TokenType.USER_DEFINED)
        return SpecialTokens({token.replace(" ", SPACE): token_id for token, token_id in spelled.items()})

    @cached_property
    def _byte_ids(self) -> list[int]:
        """The token of each byte; empty when the vocabulary has none."""
        ids = {
            _byte_value(self._vocabulary.tokens[token_id]): token_id
            for token_id in self._vocabulary.of_type(TokenType.BYTE)
        }
        if len(ids) not in (0, 256):
            raise FormatError(f"the vocabulary has tokens for {len(ids)} of 256 bytes; expected all or none")
        return [ids[byte] for byte in sorted(ids)]

    @cached_property
    def _word_start(self) -> re.Pattern[str]:
        """The places between a character and "▁" where no token reaches across.

        Nearly all tokens have "▁" in front only. Where a character stands before it in one of the few others
        (Gemma has ">▁</"), a text is not cut behind that character.
        """
        stretches = b"\xff".join(self._vocabulary.tokens).split(SPACE.encode())
        ends = {stretch[-4:] for stretch in stretches[:-1] if stretch and stretch[-1] != 0xFF}
        inner = {end.decode(errors="ignore")[-1:] for end in ends}
        return re.compile(f"(?<=[^{re.escape(''.join(sorted(inner | {SPACE})))}])(?={SPACE})")


def _byte_value(token: bytes) -> int:
    """10 for b"<0x0A>"."""
    if not re.fullmatch(rb"<0x[0-9A-Fa-f]{2}>", token):
        shown = token.decode(errors="replace")
        raise FormatError(f"{shown!r} is marked as a byte token; expected a spelling like '<0x0A>'")
    return int(token[3:5], 16)
