"""WordPiece: the tokenizer of BERT and the embedding models that descend from it.

A text is lower-cased, stripped of accents and cut at spaces, punctuation and Chinese characters. Each word
is then spelled in the longest tokens that fit, from left to right; a word that cannot be is one unknown
token. In a GGUF file a token that begins a word carries "▁" in front, one that continues a word nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property

from edgellm.errors import FormatError
from edgellm.text.provenance import changed
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

START = "▁".encode()
LONGEST_WORD = 100  # characters; a longer one is unknown

# Blocks of Chinese characters, each of which is a word (the ranges of the original implementation).
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPieceModel:
    """Encodes plain text by the longest tokens of a vocabulary."""

    space_prefix = True
    prefix_once = seeks_spaced = False
    broken = "replace"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lower = vocabulary.flag("normalizer.lowercase", True)
        self._strip_accents = vocabulary.flag("normalizer.strip_accents", self._lower)

    @cached_property
    def begin(self) -> list[int]:
        return [i for i in [self._vocabulary.role_id("cls")] if i is not None]

    @cached_property
    def end(self) -> list[int]:
        return [i for i in [self._vocabulary.role_id("seperator")] if i is not None]  # spelled so in GGUF

    def normalize(self, text: str) -> str:
        """The text without control characters, accents and capitals, as the original BERT implementation has it."""
        return changed(text, self._normalized)

    def _normalized(self, text: str) -> str:
        spaced = "".join(map(self._spaced, text))
        if self._strip_accents:
            decomposed = unicodedata.normalize("NFD", spaced)
            spaced = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        if self._lower:
            spaced = "".join(map(str.lower, spaced))  # char by char: a final sigma is nothing special
        return spaced

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]:
        """The ids of each of some normalized texts that hold no special tokens."""
        return map(self._encode, texts)

    def _encode(self, text: str) -> list[int]:
        words = "".join(f" {char} " if _is_punctuation(char) else char for char in text).split()
        return [token_id for word in words for token_id in self._encode_word(word)]

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; one that begins a word brings the space before it."""
        token = self._vocabulary.token(token_id)
        if self._vocabulary.is_type(token_id, TokenType.NORMAL) and token.startswith(START):
            return b" " + token.removeprefix(START)
        return token

    @cached_property
    def _apart(self) -> frozenset[int]:
        """Tokens that are no pieces of words, though they may be spelled like one."""
        return frozenset(self._vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED))

    @cached_property
    def _unknown(self) -> int:
        unknown = self._vocabulary.role_id("unknown")
        if unknown is None:
            raise FormatError(f"the file has no {PREFIX}unknown_token_id, and a word cannot be spelled without it")
        return unknown

    @staticmethod
    def _spaced(char: str) -> str:
        """A character of the text: nothing for a control character, with spaces around for a Chinese one."""
        if char in "\t\n\r":
            return " "
        if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co"):
            return ""
        if char.isspace():
            return " "
        return f" {char} " if any(low <= ord(char) <= high for low, high in _CHINESE) else char

    def _encode_word(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self._unknown]
        ids: list[int] = []
        at = 0
        while at < len(word):
            if at and word[at] == "▁":
                return [self._unknown]  # what the vocabulary spells so begins a word, and this does not
            start = b"" if at else START
            for end in range(len(word), at, -1):
                token_id = self._vocabulary.ids.get(start + word[at:end].encode())
                if token_id is not None and token_id not in self._apart:
                    break
            else:
                return [self._unknown]
            ids.append(token_id)
            at = end
        return ids


def _is_punctuation(char: str) -> bool:
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char).startswith("P")
