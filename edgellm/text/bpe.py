"""Byte-level byte-pair encoding: the tokenizer of GPT-2, Llama 3, Qwen, SmolLM and many more.

A text is cut into words, a word into bytes, and the bytes are joined by a ranked list of merges. In the file
each byte is written as a printable character (GPT-2's table: a space is "Ġ"), so tokens and merges are
readable text. Here words are brought into that spelling, rather than the vocabulary out of it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from edgellm.errors import FormatError
from edgellm.text.long_words import LONG, PairTable, merge_long
from edgellm.text.merging import merge_pairs
from edgellm.text.pretokenizers import PreTokenizer
from edgellm.text.provenance import changed
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

CACHE_WORDS = 50_000  # distinct words, and stretches of some, whose ids are remembered
CACHE_WORD_CHARS = 64  # longer ones are too rare to keep


def _spellings() -> list[str]:
    """GPT-2's character of each byte: printable Latin-1 stands for itself, the rest is U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in spelling)
    spelling |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [spelling[byte] for byte in range(256)]


CHAR_OF_BYTE = _spellings()
BYTE_OF_CHAR = {char: byte for byte, char in enumerate(CHAR_OF_BYTE)}
SPELLED = [char.encode() for char in CHAR_OF_BYTE]


class BytePairModel:
    """Encodes plain text by the merges of a vocabulary and a pre-tokenizer's rule."""

    space_prefix = prefix_once = False
    seeks_spaced = False

    def __init__(self, vocabulary: Vocabulary, rule: PreTokenizer) -> None:
        self._vocabulary = vocabulary
        self._rule = rule
        vocabulary.strings("merges")  # that there are none, or no texts, is an error at once
        self._words: dict[str, list[int]] = {}
        self._stretches: dict[str, list[int]] = {}  # without the spaces that they begin with

    @cached_property
    def begin(self) -> list[int]:
        return self._vocabulary.added("bos", self._rule.add_bos)

    @cached_property
    def end(self) -> list[int]:
        return self._vocabulary.added("eos", False)

    def normalize(self, text: str) -> str:
        """The text in composed form, if the rule has it so."""
        return changed(text, self._rule.normalize)

    def encode(self, text: str, at_start: bool = True) -> list[int]:
        """The ids of a normalized text that holds no special tokens."""
        first, *others = self._rule.stretches(text)
        ids, known = self._encode_words(first), self._stretches
        for stretch in others:
            found = known.get(stretch)
            if found is None:
                found = self._encode_words(f" {stretch}")
                _remember(known, stretch, found)
            ids += found
        return ids

    def _encode_words(self, text: str) -> list[int]:
        ids: list[int] = []
        words = self._words
        for word in self._rule.split(text):
            known = words.get(word)
            if known is None:
                known = self._encode_word(word)
                _remember(words, word, known)
            ids += known
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if not self._vocabulary.is_type(token_id, TokenType.NORMAL):
            return token
        try:
            return bytes(BYTE_OF_CHAR[char] for char in token.decode())
        except KeyError:
            return token  # a token added in plain text, as `tokenizers` takes it

    def _encode_word(self, word: str) -> list[int]:
        ids, ranks = self._vocabulary.ids, self._ranks
        # A byte without a token is dropped before merging, as `tokenizers` does.
        symbols = [SPELLED[byte] for byte in word.encode() if SPELLED[byte] in ids]
        whole = ids.get(b"".join(symbols)) if self._rule.ignore_merges else None
        if whole is not None and not self._vocabulary.is_type(whole, TokenType.CONTROL):  # whose name is only a word
            return [whole]
        if len(symbols) >= LONG and self._table is not None:
            merged = merge_long(np.array([ids[symbol] for symbol in symbols]), self._table)
            if merged is not None:
                return merged[0].tolist()
        tokens = merge_pairs(symbols, lambda left, right: ranks.get(left + b" " + right))
        try:
            return [ids[token] for token in tokens]
        except KeyError as error:
            made = error.args[0].decode()
            raise FormatError(f"{PREFIX}merges makes {made!r}, a token that the vocabulary lacks") from None

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        """The place of each merge, by its halves with a space between; the last one of a repeated merge."""
        merges = self._vocabulary.merges
        if b"".join(merges).count(b" ") != len(merges):
            wrong = next(merge for merge in merges if merge.count(b" ") != 1)
            shown = wrong.decode(errors="replace")
            raise FormatError(f"{PREFIX}merges holds {shown!r}; expected two tokens with a space between")
        return dict(zip(merges, range(len(merges)), strict=True))

    @cached_property
    def _table(self) -> PairTable | None:
        """The merges as numbers, for very long words; None when one of them has no token."""
        ids, ranks = self._vocabulary.ids, self._ranks
        halves = b" ".join(ranks).split(b" ")
        left, right = halves[::2], halves[1::2]
        columns = [list(map(ids.get, column)) for column in (left, right, map(bytes.__add__, left, right))]
        if any(None in column for column in columns):
            return None
        first, second, made = (np.array(column, np.int64) for column in columns)
        return PairTable(first, second, np.fromiter(ranks.values(), np.int64, len(ranks)), made, self._vocabulary.n)


def _remember(known: dict[str, list[int]], text: str, ids: list[int]) -> None:
    if len(text) <= CACHE_WORD_CHARS:
        if len(known) >= CACHE_WORDS:
            known.clear()
        known[text] = ids
