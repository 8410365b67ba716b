"""Byte-pair merges over characters rather than bytes, as Gemma 4 and Sarvam have them.

Tokens are plain text with "▁" for spaces; a character without a token is spelled in byte tokens (`<0x0A>`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgellm.text.bpe import BytePairModel
from edgellm.text.spm import CUT_FROM_CHARS, SPACE, byte_value, reaching_across, word_start, words_automata
from edgellm.text.stream import EACH
from edgellm.text.vocabulary import TokenType

if TYPE_CHECKING:
    from edgellm.text.compiled.automaton import Automaton
    from edgellm.text.compiled.words import Merging


class PlainPairModel(BytePairModel):
    """Encodes plain text by merges whose tokens are spelled as they are."""

    broken = EACH

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]:
        """The ids of each of some texts that hold no special tokens."""
        return super().encode(
            [text.replace(" ", SPACE) for text in texts] if self._rule.marks_spaces else texts, at_start
        )

    def _cut(self, text: str) -> list[str]:
        lines = super()._cut(text)
        if not self._rule.marks_spaces or len(text) < CUT_FROM_CHARS:
            return lines
        return [word for line in lines for word in self._word_start.split(line)]

    @property
    def _automata(self) -> Sequence[Automaton] | None:
        """What cuts texts, for kernels."""
        automata = self._rule.automata
        if automata is None or not self._rule.marks_spaces:
            return automata
        of_words = words_automata(self._reaching)
        return None if of_words is None else (*automata, *of_words)

    def _merging(self) -> Merging:
        """How words are merged, for kernels."""
        from edgellm.text.compiled.words import Merging

        vocabulary = self._vocabulary
        marks = np.fromiter((not token.strip(b"\n") for token in vocabulary.tokens), np.uint8, vocabulary.n)
        found = (vocabulary.ids.get(b"<0x%02X>" % byte) for byte in range(256))
        byte_ids = [-1 if token_id is None else token_id for token_id in found]
        merges = vocabulary.strings("merges")
        return Merging(vocabulary.strings("tokens"), merges, marks=marks, byte_ids=np.array(byte_ids, np.int32))

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if self._vocabulary.is_type(token_id, TokenType.BYTE):
            return bytes([byte_value(token)])
        return token.replace(SPACE.encode(), b" ") if self._rule.marks_spaces else token

    def _letters(self, word: str) -> str:
        return word

    _symbol = staticmethod(str.encode)

    def _whole(self, word: str) -> int | None:
        return None if word.strip("\n") else self._vocabulary.ids.get(word.encode())  # no merge makes line breaks

    @cached_property
    def _word_start(self) -> re.Pattern[str]:
        return word_start(self._reaching)

    @cached_property
    def _reaching(self) -> str:
        return reaching_across(self._vocabulary.strings("merges"))

    def _spell(self, symbol: bytes) -> list[int]:
        """The byte tokens of a character, or the unknown token; nothing where the vocabulary has neither."""
        spelled = [self._vocabulary.ids.get(b"<0x%02X>" % byte) for byte in symbol]
        found = [i for i in spelled if i is not None]
        unknown = self._vocabulary.role_id("unknown")
        return found if len(found) == len(symbol) or unknown is None else [unknown]
