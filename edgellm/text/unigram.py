"""Unigram (Kudo, 2018): the tokenizer of XLM-R and T5. Of all ways to spell a word in tokens, the likeliest.

A token's score is the logarithm of its probability, and the best spelling is found by one pass over the characters
(Viterbi). A character that no token has costs ten more than the unlikeliest token; a run of them is one unknown token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice

import numpy as np

from edgellm.errors import FormatError
from edgellm.text.charsmap import CharsMap
from edgellm.text.preparing import Steps
from edgellm.text.provenance import changed
from edgellm.text.remembered import Remembered
from edgellm.text.spm import SPACE, UNKNOWN
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

UNKNOWN_PENALTY = 10.0


class UnigramModel:
    """Encodes plain text by the scores of a vocabulary."""

    prefix_once = seeks_spaced = False
    broken = "replace"

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.scores is None:
            raise FormatError(f"the file has no {PREFIX}scores; a tokenizer of the t5 kind needs them")
        self._vocabulary = vocabulary
        self._scores = vocabulary.scores.astype(np.float64)
        self.space_prefix = vocabulary.flag("add_space_prefix", True)
        self._strips = vocabulary.flag("remove_extra_whitespaces", True)
        self._charsmap = CharsMap(raw) if (raw := vocabulary.bytes_of("precompiled_charsmap")) else None
        names = vocabulary.our_texts("steps")
        self._steps = None if names is None else Steps(names, self._charsmap)
        self._words = Remembered()

    @cached_property
    def begin(self) -> list[int]:
        return self._vocabulary.added("bos", False)

    @cached_property
    def end(self) -> list[int]:
        return self._vocabulary.added("eos", True)

    def normalize(self, text: str) -> str:
        """The text with the replacements of the file's table, and what else its steps do."""
        if self._steps is not None:
            return changed(text, self._steps.normalize)
        return text if self._charsmap is None else changed(text, self._charsmap.apply)

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]:
        """The ids of each of some normalized texts that hold no special tokens."""
        stretches = [self._cut(text) for text in texts]
        words = [self._words_of(stretch) for of_text in stretches for stretch in of_text]
        ids = map(self._join_unknown, self._words.joined(words, self._encode_words))
        return [list(chain.from_iterable(islice(ids, len(of_text)))) for of_text in stretches]

    def _cut(self, text: str) -> list[str]:
        """The stretches that are spelled each alone; in SentencePiece, a text is one."""
        if self._steps is not None:
            return self._steps.cut(text)
        if self._strips:
            text = " ".join(part for part in text.split(" ") if part)
        if not text:
            return []
        text = text.replace(" ", SPACE)
        return [SPACE + text if self.space_prefix and not text.startswith(SPACE) else text]

    def _words_of(self, stretch: str) -> list[str]:
        """A stretch in parts whose tokens do not depend on each other."""
        if SPACE not in stretch[1:] or self._reaches_across:
            return [stretch]
        first, *words = stretch.split(SPACE)
        return [*([first] if first else []), *(SPACE + word for word in words)]

    def _encode_words(self, words: list[str]) -> Iterator[tuple[str, list[int]]]:
        return ((word, self._spelled(word)) for word in words)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        if self._vocabulary.is_type(token_id, TokenType.UNKNOWN):
            return UNKNOWN
        return self._vocabulary.token(token_id).replace(SPACE.encode(), b" ")

    @cached_property
    def _pieces(self) -> dict[str, int]:
        """The tokens that text is spelled in, by their spelling. A file of ours says which of the added ones these are:
        for `tokenizers`, those alone that the model itself has.
        """
        vocabulary, kinds = self._vocabulary, [TokenType.NORMAL]
        if self._steps is None:
            kinds.append(TokenType.USER_DEFINED)
        found = vocabulary.spelled(*kinds)
        found |= {vocabulary.token(i).decode(): i for i in vocabulary.marked("made") or ()}
        return {text: token_id for text, token_id in found.items() if text}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._pieces), default=0)

    @cached_property
    def _reaches_across(self) -> bool:
        """Whether a token holds the end of one word and the beginning of the next; then words cannot stand alone.

        One of spaces alone does so where runs of them are kept.
        """
        return any(
            SPACE in text[1:] and (text.strip(SPACE) or self._steps is not None or not self._strips)
            for text in self._pieces
        )

    @cached_property
    def _unknown(self) -> int:
        unknown = self._vocabulary.role_id("unknown")
        if unknown is None:
            raise FormatError(f"the file has no {PREFIX}unknown_token_id, and a text cannot be spelled without it")
        return unknown

    @cached_property
    def _cost_of_unknown(self) -> float:
        known = [self._scores[token_id] for token_id in self._pieces.values()]
        return float(min(known, default=0.0)) - UNKNOWN_PENALTY

    def _spelled(self, text: str) -> list[int]:
        """The likeliest tokens of a stretch; of two spellings that are as likely, the one with the later last token."""
        pieces, scores, longest, n = self._pieces, self._scores, self._longest, len(text)
        best = [0.0] + [-np.inf] * n
        back: list[tuple[int, int]] = [(0, 0)] * (n + 1)
        for start in range(n):
            score = best[start]
            single = False
            for end in range(start + 1, min(n, start + longest) + 1):
                token_id = pieces.get(text[start:end])
                if token_id is None:
                    continue
                single = single or end == start + 1
                total = score + scores[token_id]
                if total > best[end]:
                    best[end], back[end] = total, (start, token_id)
            if not single and (total := score + self._cost_of_unknown) > best[start + 1]:
                best[start + 1], back[start + 1] = total, (start, self._unknown)
        ids: list[int] = []
        while n:
            n, token_id = back[n]
            ids.append(token_id)
        return self._join_unknown(ids[::-1])

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown tokens is one."""
        return [token_id for i, token_id in enumerate(ids) if token_id != self._unknown or ids[i - 1 : i] != [token_id]]
