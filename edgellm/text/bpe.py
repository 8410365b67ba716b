"""Byte-level byte-pair encoding: the tokenizer of GPT-2, Llama 3, Qwen, SmolLM and many more.

A text is cut into words, a word into bytes, and the bytes are joined by a ranked list of merges. In the file
each byte is written as a printable character (GPT-2's table: a space is "Ġ"), so tokens and merges are
readable text. Here words are brought into that spelling, rather than the vocabulary out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import FormatError
from edgellm.text.compiled.turn import Turn
from edgellm.text.many_words import merge_words, worthwhile
from edgellm.text.merging import merge_pairs
from edgellm.text.pairs import Pairs
from edgellm.text.pretokenizers import PreTokenizer
from edgellm.text.provenance import changed
from edgellm.text.remembered import Remembered
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

if TYPE_CHECKING:
    from edgellm.kernels.store import KernelStore
    from edgellm.text.compiled.automaton import Automaton
    from edgellm.text.compiled.words import CompiledWords, Merging


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
_SPELLED = {chr(byte): spelled for byte, spelled in enumerate(SPELLED)}


class BytePairModel:
    """Encodes plain text by the merges of a vocabulary and a pre-tokenizer's rule."""

    space_prefix = prefix_once = False
    seeks_spaced = False
    broken = "replace"

    def __init__(self, vocabulary: Vocabulary, rule: PreTokenizer) -> None:
        self._vocabulary = vocabulary
        self._rule = rule
        vocabulary.strings("merges")  # that there are none, or no texts, is an error at once
        self._words = Remembered()
        self._turn = Turn()

    @cached_property
    def begin(self) -> list[int]:
        return self._vocabulary.added("bos", self._rule.add_bos)

    @cached_property
    def end(self) -> list[int]:
        return self._vocabulary.added("eos", False)

    def normalize(self, text: str) -> str:
        """The text in composed form, if the rule has it so."""
        return changed(text, self._rule.normalize)

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]:
        """The ids of each of some normalized texts that hold no special tokens."""
        compiled = self._turn.words(sum(map(len, texts)), self._compiled)
        found = None if compiled is None else compiled.encode(texts, self._words_in_python)
        return self._in_python(list(map(self._cut, texts))) if found is None else found

    def _in_python(self, texts: list[list[str]]) -> list[list[int]]:
        """The ids of each of some texts that are cut into words."""
        return self._words.joined(texts, self._encode_words)

    def _words_in_python(self, words: list[str]) -> list[list[int]]:
        """The ids of each of some words."""
        return self._in_python([[word] for word in words])

    def _compiled(self, store: KernelStore) -> CompiledWords | None:
        """What encodes long texts; None where only Python can."""
        from edgellm.text.compiled.words import CompiledWords

        automata = self._automata
        if automata is None or (self._rule.ignore_merges and self._without_token):  # there, words have two spellings
            return None
        merging = self._merging()
        words = CompiledWords(automata, merging, store)
        if not words.ready:
            return None
        if words.n_spaces != len(merging.merges):
            self._check_merges()  # says which is wrong
        return words

    @property
    def _automata(self) -> Sequence[Automaton] | None:
        """What cuts texts, for kernels."""
        return self._rule.automata

    def _merging(self) -> Merging:
        """How words are merged, for kernels."""
        from edgellm.kernels.word_records import WHOLE
        from edgellm.text.compiled.words import Merging

        vocabulary, marks = self._vocabulary, None
        if self._rule.ignore_merges:
            marks = np.full(vocabulary.n, WHOLE, np.uint8)
            marks[list(self._control)] = 0
        spelling = [spelled if spelled in vocabulary.ids else b"" for spelled in SPELLED]
        return Merging(vocabulary.strings("tokens"), vocabulary.strings("merges"), spelling=spelling, marks=marks)

    def _cut(self, text: str) -> list[str]:
        """The words of a text."""
        return self._rule.split(text)

    def _encode_words(self, words: list[str]) -> Iterator[tuple[str, list[int]]]:
        wholes = {word: whole for word in words if (whole := self._whole(word)) is not None}
        yield from ((word, [whole]) for word, whole in wholes.items())
        others = [word for word in words if word not in wholes]
        yield from zip(others, self._merge(list(map(self._letters, others))), strict=True)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if not self._vocabulary.is_type(token_id, TokenType.NORMAL):
            return token
        try:
            return bytes(BYTE_OF_CHAR[char] for char in token.decode())
        except KeyError:
            return token  # a token added in plain text, as `tokenizers` takes it

    def _letters(self, word: str) -> str:
        """The bytes of a word, each as the character of its number.

        A byte without a token is dropped before merging, as `tokenizers` does.
        """
        lacking = self._without_token
        return word if word.isascii() and not lacking else word.encode().translate(None, lacking).decode("latin-1")

    _symbol: Callable[[str], bytes] = staticmethod(_SPELLED.__getitem__)  # of a letter

    def _whole(self, word: str) -> int | None:
        """The token that a word is taken for, whatever its merges would make of it. No byte of it is dropped."""
        if not self._rule.ignore_merges:
            return None
        whole = self._vocabulary.ids.get(b"".join([SPELLED[byte] for byte in word.encode()]))
        return None if whole in self._control else whole

    @cached_property
    def _control(self) -> frozenset[int]:
        """Tokens whose names are only words in a text."""
        return frozenset(self._vocabulary.of_type(TokenType.CONTROL))

    def _merge(self, words: list[str]) -> list[list[int]]:
        """The ids of words that are spelled in letters."""
        if not worthwhile(words):
            return [self._ids_of(merge_pairs(list(map(self._symbol, word)), self._rank)) for word in words]
        n, symbols = self._vocabulary.n, self._pairs.symbols
        merged = merge_words(words, self._pairs)
        if len(symbols) == n:
            return merged  # all are tokens
        return [ids if max(ids, default=0) < n else self._ids_of([symbols[i] for i in ids]) for ids in merged]

    def _ids_of(self, symbols: list[bytes]) -> list[int]:
        ids = self._vocabulary.ids
        try:
            return [ids[symbol] for symbol in symbols]
        except KeyError:
            return [i for symbol in symbols for i in ([ids[symbol]] if symbol in ids else self._spell(symbol))]

    def _spell(self, symbol: bytes) -> list[int]:
        """The ids of what merging has left and is no token."""
        raise FormatError(f"{PREFIX}merges makes {symbol.decode()!r}, a token that the vocabulary lacks")

    @cached_property
    def _without_token(self) -> bytes:
        return bytes(byte for byte, spelled in enumerate(SPELLED) if spelled not in self._vocabulary.ids)

    @cached_property
    def _rank(self) -> Callable[[bytes, bytes], int | None]:
        """The place of a merge in the list."""
        self._check_merges()
        ranks = self._vocabulary.ranks
        return lambda left, right: ranks.get(left + b" " + right)

    @cached_property
    def _pairs(self) -> Pairs:
        return Pairs(self._vocabulary.tokens, self._vocabulary.ids.get, self._rank, self._symbol)

    def _check_merges(self) -> None:
        """FormatError for a merge that is not two tokens with a space between."""
        if self._vocabulary.ranks.count(ord(" ")) != len(self._vocabulary.strings("merges")):
            wrong = next(merge for merge in self._vocabulary.merges if merge.count(b" ") != 1)
            shown = wrong.decode(errors="replace")
            raise FormatError(f"{PREFIX}merges holds {shown!r}; expected two tokens with a space between")
