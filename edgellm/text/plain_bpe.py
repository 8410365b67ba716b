"""Byte-pair merges over characters rather than bytes, as Gemma 4 and Sarvam have them.

Tokens are plain text with "▁" for spaces; a character without a token is spelled in byte tokens (`<0x0A>`).
"""

from __future__ import annotations

from edgellm.text.bpe import BytePairModel
from edgellm.text.merging import merge_pairs
from edgellm.text.spm import SPACE, byte_value
from edgellm.text.vocabulary import TokenType


class PlainPairModel(BytePairModel):
    """Encodes plain text by merges whose tokens are spelled as they are."""

    def encode(self, text: str, at_start: bool = True) -> list[int]:
        """The ids of a text that holds no special tokens."""
        return super().encode(text.replace(" ", SPACE) if self._rule.marks_spaces else text, at_start)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if self._vocabulary.is_type(token_id, TokenType.BYTE):
            return bytes([byte_value(token)])
        return token.replace(SPACE.encode(), b" ") if self._rule.marks_spaces else token

    def _encode_word(self, word: str) -> list[int]:
        ids, ranks = self._vocabulary.ids, self._ranks
        whole = ids.get(word.encode())
        if whole is not None and not word.strip("\n"):
            return [whole]  # no merge makes line breaks
        symbols = merge_pairs([char.encode() for char in word], lambda left, right: ranks.get(left + b" " + right))
        return [i for symbol in symbols for i in ([ids[symbol]] if symbol in ids else self._spell(symbol))]

    def _spell(self, symbol: bytes) -> list[int]:
        """The byte tokens of a character, or the unknown token; nothing where the vocabulary has neither."""
        spelled = [self._vocabulary.ids.get(b"<0x%02X>" % byte) for byte in symbol]
        found = [i for i in spelled if i is not None]
        unknown = self._vocabulary.role_id("unknown")
        return found if len(found) == len(symbol) or unknown is None else [unknown]
