"""SentencePiece byte-pair encoding: the tokenizer of Llama 2, Mistral and Gemma.

A text is not cut into words. Spaces become "▁", and neighbouring characters are joined as long as they make
a token, the one with the highest score first. A character without a token is spelled in byte tokens
(`<0x0A>`). Follows `sentencepiece` (model type BPE, identity normalization).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FormatError
from edgellm.text.compiled.turn import Turn
from edgellm.text.many_words import merge_words, worthwhile
from edgellm.text.merging import merge_pairs
from edgellm.text.pairs import Pairs
from edgellm.text.provenance import like
from edgellm.text.remembered import Remembered
from edgellm.text.stream import EACH
from edgellm.text.string_index import in_one
from edgellm.text.vocabulary import OURS, PREFIX, TokenType, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.kernels.store import KernelStore
    from edgellm.text.compiled.automaton import Automaton
    from edgellm.text.compiled.words import CompiledWords

SPACE = "▁"
UNKNOWN = " ⁇ ".encode()  # what stands for a character that the vocabulary could not encode
SCHEME = f"{OURS}prepend_scheme"
SCHEMES = ("first", "always", "never")
CUT_FROM_CHARS = 4096  # a longer text is cut in words, and each merged alone and remembered
_WINDOW = 1 << 17  # bytes of tokens that are looked through at a time; what is made of them stays in a cache
_BYTE = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_EACH_SPACE = re.compile(f"(?={SPACE})")


class SentencePieceModel:
    """Encodes plain text by the scores of a vocabulary.

    space_prefix:  a text gets a space in front. In which texts differs between `sentencepiece`, where each stretch
                   between control tokens is one, and the Metaspace of `tokenizers`, whose `prepend_scheme` our own
                   files name: "first" is the stretch that begins the whole text, "always" is each, and none gets a
                   space where it has one.
    """

    broken = EACH

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.scores is None:
            raise FormatError(f"the file has no {PREFIX}scores; a tokenizer of the llama kind needs them")
        self._vocabulary = vocabulary
        self._scores = vocabulary.scores.astype(np.float32).data  # items of a memoryview come quickly
        self._scheme = vocabulary.text(SCHEME)
        if self._scheme not in (None, *SCHEMES):
            raise FormatError(f"{SCHEME} is {self._scheme!r:.60}; expected one of {', '.join(SCHEMES)}")
        told = vocabulary.flag("add_space_prefix", True)
        self.space_prefix = told if self._scheme is None else self._scheme != "never"
        self.prefix_once = self._scheme == "first"
        self.seeks_spaced = vocabulary.marked("normalized") is None  # tokens, as `sentencepiece` does
        self._splits = vocabulary.our_flag("split_at_spaces", False)
        self._words = Remembered()
        self._turn = Turn()

    @cached_property
    def begin(self) -> list[int]:
        return self._vocabulary.added("bos", True)

    @cached_property
    def end(self) -> list[int]:
        return self._vocabulary.added("eos", False)

    @cached_property
    def _unknown(self) -> int | None:
        return self._vocabulary.role_id("unknown")

    def normalize(self, text: str) -> str:
        """The text with "▁" for spaces, and one in front; Metaspace leaves that to `encode`."""
        if self._scheme is not None or not text:
            return text
        prefix = SPACE if self.space_prefix else ""
        return like(text, prefix + text.replace(" ", SPACE), len(prefix))

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]:
        """The ids of each of some normalized texts that hold no special tokens. at_start: the first begins them all."""
        if self._scheme is not None:
            texts = [self._spaced(text, at_start and not i) for i, text in enumerate(texts)]
        compiled = self._turn.words(sum(map(len, texts)), self._compiled)
        found = None if compiled is None else compiled.encode(texts, self._words_in_python)
        if found is not None:
            return found if len(self._byte_ids) == 256 else map(self._join_unknown, found)
        if self._splits:
            words = [[word for word in _EACH_SPACE.split(text) if word] for text in texts]
            return self._words.joined(words, self._encode_words)
        if sum(map(len, texts)) < CUT_FROM_CHARS:
            return (self._join_unknown(self._merge(text)) for text in texts)
        words = [self._word_start.split(text) for text in texts]
        return map(self._join_unknown, self._words.joined(words, self._encode_words))

    def _spaced(self, text: str, at_start: bool) -> str:
        """A text as Metaspace has it."""
        text = text.replace(" ", SPACE)
        prepends = self._scheme == "always" or (self._scheme == "first" and at_start)
        return SPACE + text if prepends and not text.startswith(SPACE) else text

    def _compiled(self, store: KernelStore) -> CompiledWords | None:
        """What encodes long texts; None where only Python can."""
        from edgellm.kernels.word_records import PASSING
        from edgellm.text.compiled.words import CompiledWords, Merging

        vocabulary = self._vocabulary
        automata = words_automata(None if self._splits else self._reaching)
        if automata is None:
            return None
        marks = None
        if self._unused:
            marks = np.zeros(vocabulary.n, np.uint8)
            marks[list(self._unused)] = PASSING
        byte_ids = np.array([self._byte_ids.get(byte, -1) for byte in range(256)], np.int32)
        merging = Merging(vocabulary.strings("tokens"), None, self._ranks(), None, marks, byte_ids)
        words = CompiledWords(automata, merging, store)
        return words if words.ready else None

    def _ranks(self) -> NDArray[np.int32]:
        """Of each token, the lowest for the highest score; UNRANKED for one that no text makes."""
        from edgellm.kernels.word_records import UNRANKED

        bits = (0.0 - np.asarray(self._scores)).astype(np.float32).view(np.int32)  # never -0.0
        ranks = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # in the order of the numbers
        ranks[np.frombuffer(self._mergeable, np.bool_) == 0] = UNRANKED
        return ranks

    def _words_in_python(self, words: list[str]) -> list[list[int]]:
        """The ids of each of some words."""
        return self._words.joined([[word] for word in words], self._encode_words)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text."""
        token = self._vocabulary.token(token_id)
        if self._vocabulary.is_type(token_id, TokenType.BYTE):
            return bytes([byte_value(token)])
        if self._vocabulary.is_type(token_id, TokenType.UNKNOWN):
            return UNKNOWN
        return token.replace(SPACE.encode(), b" ")

    def _merge(self, text: str) -> list[int]:
        find, scores, mergeable = self._vocabulary.ids.getter, self._scores, self._mergeable
        halves: dict[bytes, tuple[bytes, bytes]] = {}

        def rank(left: bytes, right: bytes) -> float | None:
            token_id = find(left + right)
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
            token_id = find(symbol)
            found += self._spell(symbol) if token_id is None or not mergeable[token_id] else (token_id,)
        return found

    def _encode_words(self, words: list[str]) -> Iterator[tuple[str, list[int]]]:
        if not worthwhile(words):
            yield from ((word, self._join_unknown(self._merge(word))) for word in words)
            return
        n, symbols = self._vocabulary.n, self._pairs.symbols
        for word, ids in zip(words, merge_words(words, self._pairs), strict=True):
            if not self._unused.isdisjoint(ids):
                ids = self._merge(word)  # which takes them apart again
            elif max(ids, default=0) >= n:
                ids = [i for number in ids for i in ([number] if number < n else self._spell(symbols[number]))]
            yield word, self._join_unknown(ids)

    @cached_property
    def _pairs(self) -> Pairs:
        ids, mergeable = self._vocabulary.ids, self._mergeable
        _, ranks = np.unique(-np.array(self._scores), return_inverse=True)
        rank_of = ranks.astype(np.int64).data

        def token_id(symbol: bytes) -> int | None:
            found = ids.get(symbol)
            return None if found is None or not mergeable[found] else found

        def rank(left: bytes, right: bytes) -> int | None:
            found = ids.get(left + right)
            return None if found is None or not mergeable[found] else rank_of[found]

        return Pairs(self._vocabulary.tokens, token_id, rank, str.encode)

    def _spell(self, symbol: bytes) -> list[int]:
        """The byte tokens of a character that has no token itself, or the unknown token where one of them lacks."""
        if all(byte in self._byte_ids for byte in symbol):
            return [self._byte_ids[byte] for byte in symbol]
        if self._unknown is None:
            lacking = next(byte for byte in symbol if byte not in self._byte_ids)
            raise FormatError(
                f"the vocabulary has no token for {symbol.decode()!r}, none for its byte <0x{lacking:02X}>, and no "
                "unknown token"
            )
        return [self._unknown]

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown characters is one unknown token.

        As in `tokenizers`, bytes do not end such a run: it goes on behind them, and its token comes after theirs.
        """
        unknown = self._unknown
        if unknown not in ids:
            return ids
        spelled, found, is_open = self._spelling_ids, list[int](), False
        for token_id in ids:
            if token_id == unknown:
                is_open = True
                continue
            if is_open and token_id not in spelled:
                found.append(unknown)
                is_open = False
            found.append(token_id)
        return [*found, unknown] if is_open else found

    @cached_property
    def _mergeable(self) -> bytes:
        """1 for each token that merging may make; in a text, the spelling of a control token is just text.

        But a file of ours can say that some are words as well, which merging makes of letters as it makes others.
        """
        mergeable = np.isin(self._vocabulary.types, (TokenType.NORMAL, TokenType.UNUSED))
        mergeable[list(self._vocabulary.marked("made") or ())] = True
        return mergeable.tobytes()

    @cached_property
    def _unused(self) -> frozenset[int]:
        return frozenset(self._vocabulary.of_type(TokenType.UNUSED))

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        """The token of each byte that has one; of those that are marked so, any that is spelled like one."""
        spelled = {i: self._vocabulary.token(i) for i in self._vocabulary.of_type(TokenType.BYTE)}
        return {int(token[3:5], 16): i for i, token in spelled.items() if _BYTE.fullmatch(token)}

    @cached_property
    def _spelling_ids(self) -> frozenset[int]:
        return frozenset(self._byte_ids.values())

    @cached_property
    def _word_start(self) -> re.Pattern[str]:
        return word_start(self._reaching)

    @cached_property
    def _reaching(self) -> str:
        return reaching_across(self._vocabulary.strings("tokens"))


def word_start(reaching: str) -> re.Pattern[str]:
    """The places before "▁" where a text can be cut. reaching: characters behind which it cannot."""
    return re.compile(f"(?<=[^{re.escape(reaching)}])(?={SPACE})")


def words_automata(reaching: str | None) -> tuple[Automaton, ...] | None:
    """What cuts a text at these places, for kernels; None: before each "▁"."""
    from edgellm.text.compiled.automaton import automata_of  # for long texts only

    if reaching is None:
        return automata_of((f"{SPACE}[^{SPACE}]*|[^{SPACE}]+",), re.compile, re.compile)
    chars = re.escape(reaching)
    pattern = f"(?:[{chars}]|[^{chars}]+(?!{SPACE})[{chars}])+[^{chars}]*|[^{chars}]+"
    return automata_of((pattern,), re.compile, re.compile)


def reaching_across(symbols: Any) -> str:
    """The characters that some symbol has before a "▁", and "▁" itself: behind them, a text is not cut into words.

    Nearly all symbols have "▁" in front only, but a few do not (Gemma has ">▁</").

    symbols:  strings, a list or a lazy sequence; a space in them stands between two halves.
    """
    array, starts, lead = in_one(symbols)
    space, end = SPACE.encode(), int(starts[-1])
    windows = [*range(int(starts[0]) + lead, end, _WINDOW), end]
    parts = np.searchsorted(starts, np.array(windows) - lead).tolist()
    found: list[int] = []  # what may be a "▁" inside of a string
    for (start, stop), (first, last) in zip(pairwise(windows), pairwise(parts), strict=True):
        inside = array[start:stop] == space[0]
        inside[starts[first:last] + (lead - start)] = False
        found += (np.flatnonzero(inside) + start).tolist()
    ends = [at for at in found if array[at : at + len(space)].tobytes() == space]  # of what stands before it
    before = {array[max(at - 5, 0) : at].tobytes().removesuffix(b" ") for at in ends}
    return "".join(sorted({chars.decode(errors="ignore")[-1:] for chars in before} | {SPACE}))


def byte_value(token: bytes) -> int:
    """10 for b"<0x0A>"."""
    if not _BYTE.fullmatch(token):
        shown = token.decode(errors="replace")
        raise FormatError(f"{shown!r} is marked as a byte token; expected a spelling like '<0x0A>'")
    return int(token[3:5], 16)
