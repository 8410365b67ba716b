"""A vocabulary being put together, from whichever files a folder has, for the metadata of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgellm.convert.vocabulary.files import kind_of, whole_text
from edgellm.errors import FormatError
from edgellm.formats.gguf.header import quoted
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import OURS, PREFIX, TokenType

MOST_BEYOND = 1024  # added tokens that may come after the rows of the embedding
ADDED_SCORE = -1000.0  # of tokens that no merging makes, as other converters write it
MOST_CHARS = 512  # of a token; the longest in use have half of that

# Added tokens that steer a model, though some files do not call them special.
_STEERING = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused\d+>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
# What `tokenizers` says of an added token: where it is found, and what it swallows.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
# GGUF's names of the roles that a token can have, where they differ from those of Hugging Face.
_GGUF_ROLES = {"unk": "unknown", "pad": "padding", "sep": "seperator"}


class Token(NamedTuple):
    """One token: its spelling in the file, its type, and its score where the kind of tokenizer has scores."""

    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


class Draft:
    """Tokens by id, and what else the metadata says of a tokenizer.

    file:     the file that it is read from, for errors.
    n_vocab:  rows of the model's embedding; every id lies below, but for a few of added tokens.
    model, pre:   GGUF's names of the kind of tokenizer and of the pre-tokenizer.
    merges:   pairs, best first, for the kind "gpt2".
    ignore_merges:  whether a word that is a token is taken whole, whatever the merges would make of it.
    roles:    "bos", "eos", "unk", ... and the token's id.
    names:    the same by their spelling; what the folder's settings say comes before.
    begin, end:   ids that are put around a text; None when the files leave it to the settings.
    settings: further keys of the metadata, without their prefix.
    ours:     the same for keys of our own, `edgellm.tokenizer.*`: what GGUF cannot say.
    flags:    the ids of the added tokens that have each of FLAGS.
    merged:   the added tokens that merging makes of spaces as well.
    prefixed: each stretch between added tokens can get a space in front.
    made:     what a text is made of before and by merging, where U+2581 stands for spaces; no names of special tokens.
    notes:    what a person should know: what is left out.
    """

    def __init__(self, file: str, n_vocab: int, model: str, pre: str = "default") -> None:
        self.file = file
        self.n_vocab = n_vocab
        self.model = model
        self.pre = pre
        self.tokens: dict[int, Token] = {}
        self.ids: dict[str, int] = {}
        self.merges: Sequence[tuple[str, str]] | None = None
        self.ignore_merges = False
        self.roles: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.begin: list[int] | None = None
        self.end: list[int] | None = None
        self.settings: dict[str, Any] = {}
        self.ours: dict[str, Any] = {}
        self.flags: dict[str, set[int]] = {flag: set() for flag in FLAGS}
        self.merged: set[int] = set()
        self.prefixed = False
        self.made: frozenset[str] = frozenset()
        self.notes: list[str] = []

    def put(
        self,
        token_id: Any,
        text: Any,
        token_type: TokenType = TokenType.NORMAL,
        score: float = 0.0,
        n_beyond: int = 0,
    ) -> None:
        """Give an id its token. FormatError for ids that are taken or lie beyond the model, and for no texts.

        n_beyond:  how far beyond the model's rows it may lie.
        """
        if type(text) is not str or len(text) > MOST_CHARS:
            found = f"{len(text)} characters long" if type(text) is str else kind_of(text)
            raise FormatError(f"{self.file}: token {token_id} is {found}; expected a text of up to {MOST_CHARS}")
        if type(token_id) is not int or not 0 <= token_id < self.n_vocab + n_beyond:
            raise self._beyond(token_id, text)
        if not text.isascii():
            whole_text(text, f"{self.file}: token {token_id}")
        if token_id in self.tokens:
            both = f"{quoted(self.tokens[token_id].text)} and {quoted(text)}"
            raise FormatError(f"{self.file}: the id {token_id} stands for {both}; expected one token for each id")
        if text in self.ids and text:
            both = f"{self.ids[text]} and {token_id}"
            raise FormatError(f"{self.file}: the token {quoted(text)} has the ids {both}; expected each token once")
        self.tokens[token_id] = Token(text, token_type, score)
        self.ids[text] = token_id

    def put_all(self, vocab: Mapping[str, Any], added: Collection[str] = ()) -> None:
        """Take a vocabulary that maps tokens to ids; those of `added` are added ones, and may lie beyond the rows."""
        for text, token_id in vocab.items():
            self.put(token_id, text, n_beyond=MOST_BEYOND if text in added else 0)

    def add(self, token_id: Any, text: Any, special: bool, file: str, may_rename: bool = False) -> None:
        """A token added beside the vocabulary, or set apart within it, as `file` says.

        special:     it steers the model, and no text that somebody types should make it.
        may_rename:  it may take the place of another token.
        """
        known = self.tokens.get(token_id) if type(token_id) is int else None
        if known is not None and known.text != text and may_rename:
            del self.tokens[token_id], self.ids[known.text]
            known = None
        if known is None or known.text != text:
            origin, self.file = self.file, file
            self.put(token_id, text, n_beyond=MOST_BEYOND)
            self.file = origin
        if known is not None and known.type in (TokenType.UNKNOWN, TokenType.BYTE):
            return
        if not special and self.merges_spaces(text):
            self.merged.add(token_id)
            return
        self.merged.discard(token_id)
        steers = special or _STEERING.fullmatch(text)
        token_type = TokenType.CONTROL if steers else TokenType.USER_DEFINED
        score = known.score if known is not None and text in self.made else ADDED_SCORE
        self.tokens[token_id] = Token(text, token_type, score)

    def merges_spaces(self, text: str) -> bool:
        """Whether an added token with U+2581 in it is left to merging, which makes it of spaces.

        A text has spaces in their place, so `tokenizers` finds such a token only where somebody typed U+2581. GGUF
        has no type for both; a key of our own says that it is found as well.
        """
        return SPACE in text and text in self.made

    def take_merges(self, merges: Iterable[Any]) -> None:
        """Take merges, each a pair or a text with a space between; FormatError for one that names no tokens."""
        pairs = []
        ids = self.ids
        for merge in merges:
            pair = tuple(merge.split(" ")) if type(merge) is str else tuple(merge) if type(merge) is list else ()
            if len(pair) != 2 or not type(pair[0]) is type(pair[1]) is str:
                raise FormatError(f"{self.file}: merges holds {merge!r:.80}; expected pairs of tokens")
            for token in (*pair, pair[0] + pair[1]):
                if token not in ids:
                    raise FormatError(
                        f"{self.file}: the merge {quoted(' '.join(pair))} needs {quoted(token)}, "
                        "a token that the vocabulary lacks"
                    )
            if " " not in pair[0] + pair[1]:  # no space is left in the text when pairs are joined
                pairs.append(pair)
        self.merges = pairs

    def id_of(self, text: str, file: str) -> int:
        """The id of a token that `file` names."""
        if text not in self.ids:
            raise FormatError(f"{file} names {quoted(text)}, a token that {self.file} lacks")
        return self.ids[text]

    def metadata(self) -> dict[str, Any]:
        """The keys `tokenizer.ggml.*`; ids without a token become unused ones.

        There are n_vocab tokens, or more where added ones have no row in the embedding.
        """
        tokens = [self._token(i) for i in range(max(self.n_vocab, max(self.tokens, default=0) + 1))]
        found: dict[str, Any] = {"model": self.model, "pre": self.pre, "tokens": [token.text for token in tokens]}
        if self.model in ("llama", "t5"):
            found["scores"] = np.array([token.score for token in tokens], np.float32)
        found["token_type"] = np.array([token.type for token in tokens], np.int32)
        if self.merges is not None:
            found["merges"] = [f"{left} {right}" for left, right in self.merges]
        found |= {f"{_GGUF_ROLES.get(role, role)}_token_id": token_id for role, token_id in self.roles.items()}
        ours = self.ours | {flag: np.array(sorted(ids), np.int32) for flag, ids in self.flags.items() if ids}
        return {PREFIX + key: value for key, value in (found | self.settings).items()} | {
            OURS + key: value for key, value in ours.items()
        }

    def _token(self, token_id: int) -> Token:
        token = self.tokens.get(token_id)
        if token is None:
            name = f"[PAD{token_id}]"
            while name in self.ids:
                name = f"[{name}]"
            return Token(name, TokenType.UNUSED, ADDED_SCORE)
        if self._stands_for_spaces(token_id, token):
            # Other programs look for these in the text before its spaces become "\u2581".
            spaced = token.text.replace(SPACE, " ")
            return token if spaced in self.ids else token._replace(text=spaced)
        return token

    def _stands_for_spaces(self, token_id: int, token: Token) -> bool:
        """Whether U+2581 in a user-defined token is a space: in SentencePiece's own model, and where `tokenizers`
        looks for the token in a text whose spaces have become U+2581.
        """
        if self.model != "llama" or token.type != TokenType.USER_DEFINED:
            return False
        return not self.file.endswith(".json") or (token_id in self.flags["normalized"] and self.replaces_spaces)

    @property
    def replaces_spaces(self) -> bool:
        """Whether spaces are U+2581 where added tokens are looked for in normalized text; Metaspace does it later."""
        return "prepend_scheme" not in self.ours

    def _beyond(self, token_id: Any, text: str) -> FormatError:
        if type(token_id) is int and token_id >= self.n_vocab:
            return FormatError(
                f"{self.file}: token {quoted(text)} has the id {token_id}, but the model's embedding has "
                f"{self.n_vocab} rows; the tokenizer is another model's, or its new tokens were never trained"
            )
        return FormatError(f"{self.file}: token {quoted(text)} has the id {token_id!r:.40}; expected a whole number")
