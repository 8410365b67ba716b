"""Text to token ids and back, for the tokenizer that a GGUF file describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from edgellm import checks
from edgellm.errors import FormatError, UnsupportedError
from edgellm.text.bpe import BytePairModel
from edgellm.text.provenance import Text, like, only_written
from edgellm.text.special_tokens import SpecialTokens
from edgellm.text.spm import SentencePieceModel
from edgellm.text.stream import StreamDecoder
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

# Tokens that end an answer, by the names that model families give them.
END_OF_TURN = (
    b"<|im_end|>", b"<|eot_id|>", b"<|eom_id|>", b"<|eot|>", b"<|eom|>", b"<end_of_turn>", b"<turn|>",
    b"<|end|>", b"<|return|>", b"<|call|>", b"<|endoftext|>", b"<|end_of_text|>", b"<|END_OF_TURN_TOKEN|>",
    b"<EOT>", b"[EOT]", b"<end_of_utterance>", "<\uff5cend▁of▁sentence\uff5c>".encode(),
)  # fmt: skip

ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask")  # spelled so in GGUF
_FRAME = re.compile("<\\|.+\\|>|<\uff5c.+\uff5c>|<(start|end)_of_turn>|<\\|turn>|<turn\\|>")


class Model(Protocol):
    """What turns a stretch of plain text into ids: one class for each `tokenizer.ggml.model`.

    begin, end:      ids that `add_special` puts around a text.
    space_prefix:    a text begins with a space that is not its own; decoding takes it away.
    splits_user_defined:  `encode` itself finds user-defined tokens, those in `control` only where a template wrote
                     them.
    """

    begin: list[int]
    end: list[int]
    space_prefix: bool
    splits_user_defined: bool

    def encode(self, text: str, control: Set[int] = frozenset()) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Tokenizer:
    """Encodes and decodes with one vocabulary; made by `load_tokenizer`.

    n_vocab:         number of tokens.
    bos_id, eos_id:  the tokens at the beginning and the end of a text, or None.
    """

    def __init__(self, vocabulary: Vocabulary, model: Model, strips_right: bool) -> None:
        self._vocabulary = vocabulary
        self._model = model
        self._strips_right = strips_right
        self.n_vocab = vocabulary.n
        self.bos_id = vocabulary.role_id("bos")
        self.eos_id = vocabulary.role_id("eos")

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The token ids of a text.

        add_special:    put the tokens around it that the model expects (bos, eos), as its file says.
        parse_special:  take `<|im_end|>` and the like in the text for the control tokens of that name. A chat
                        template needs this; text that somebody typed must not have it. Of a prompt that
                        `ChatTemplate.render` made, only what the template wrote is taken so.

        A lone surrogate, which no encoding can hold, becomes U+FFFD.
        """
        checks.text("text", text)
        special = self._all_special if parse_special else self._always_special
        control: Set[int] = self._control if isinstance(text, Text) else frozenset()
        if not text.isascii():
            text = like(text, re.sub("[\ud800-\udfff]", "\ufffd", text))
        ids = self._model.begin.copy() if add_special else []
        for piece in special.split(text, only_written(text, control) if control else None):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._model.encode(piece, control)
        if add_special:
            ids += self._model.end
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of some tokens, undoing `encode`; bytes that are not UTF-8 become U+FFFD.

        `skip_special` leaves control tokens out.
        """
        pieces: list[bytes] = []
        begins = self._model.space_prefix
        for token_id in checks.token_ids("ids", ids, self.n_vocab):
            piece = self._model.token_bytes(token_id)
            if self._vocabulary.is_type(token_id, TokenType.CONTROL):
                begins = self._model.space_prefix
                if skip_special:
                    continue
            elif begins:
                piece = piece.removeprefix(b" ")
                begins = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self, skip_special: bool = True, after: int | None = None) -> StreamDecoder:
        """A decoder for tokens that continue a text: a space in front stays, control tokens show nothing.

        after:  the token before them. When it is a control token (bos, say), a text begins, and the space that is
                not its own is left out, as `decode` does.
        """
        begins = after is not None and self._model.space_prefix and self._is_control(after)

        def shown(token_id: int) -> bytes:
            nonlocal begins
            if skip_special and self._is_control(token_id):
                return b""
            piece = self.token_bytes(token_id)
            if begins:
                begins, piece = False, piece.removeprefix(b" ")
            return piece

        return StreamDecoder(shown)

    def _is_control(self, token_id: int) -> bool:
        return self._vocabulary.is_type(token_id, TokenType.CONTROL)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; not always whole characters."""
        return self._model.token_bytes(token_id)

    def token_name(self, token_id: int) -> str:
        """A token as the file spells it."""
        return self._vocabulary.token(token_id).decode()

    @property
    def n_without_added(self) -> int:
        """Number of tokens up to the last that is no added one (control, user-defined or unused)."""
        added = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
        ordinary = np.flatnonzero(~np.isin(self._vocabulary.types, added))
        return int(ordinary[-1]) + 1 if len(ordinary) else 0

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The spelling of each token with a role, under the name that chat templates use: bos_token, ..."""
        roles = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # GGUF's names, where they differ
        names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
        ids = {name: self._vocabulary.role_id(roles.get(name, name)) for name in names}
        return {f"{name}_token": self.token_name(i) for name, i in ids.items() if i is not None}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends a generated answer: end of text, of turn, of message."""
        found = {self._vocabulary.role_id(role) for role in ("eos", "eot", "eom")}
        named = {name: self._vocabulary.ids.get(name) for name in END_OF_TURN}
        if named[b"<|return|>"] is not None and named[b"<|call|>"] is not None:
            named[b"<|end|>"] = None  # in OpenAI's harmony format it only ends a part of an answer
        special = (TokenType.CONTROL, TokenType.USER_DEFINED)
        found |= {i for i in named.values() if i is not None and self._vocabulary.types[i] in special}
        return frozenset(i for i in found if i is not None)

    @cached_property
    def _control(self) -> frozenset[int]:
        """The tokens that no text of a chat may become: all that frame texts, however the file types them."""
        found = set(self._vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)) | self.stop_ids
        found |= {i for i in map(self._vocabulary.role_id, ROLES) if i is not None}
        named = self._vocabulary.spelled(TokenType.USER_DEFINED)
        found |= {token_id for token, token_id in named.items() if _FRAME.fullmatch(token)}
        return frozenset(found)

    @cached_property
    def _always_special(self) -> SpecialTokens:
        """The tokens found in any text."""
        return self._special() if self._model.splits_user_defined else self._special(TokenType.USER_DEFINED)

    @cached_property
    def _all_special(self) -> SpecialTokens:
        """The tokens found in a text that may name control tokens."""
        types = [TokenType.CONTROL, TokenType.UNKNOWN]
        if not self._model.splits_user_defined:
            types.append(TokenType.USER_DEFINED)
        return self._special(*types)

    def _special(self, *types: TokenType) -> SpecialTokens:
        ids = self._vocabulary.spelled(*types)
        keep = ("<unk>", "<s>", "<|endoftext|>")
        strip = {i for token, i in ids.items() if token not in keep} if self._strips_right else set()
        return SpecialTokens(ids, strip)


def load_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF file describes (keys `tokenizer.ggml.*`).

    String arrays may be lazy sequences that offer `len` and `as_bytes()`, number arrays are NumPy arrays.
    Raises FormatError for a vocabulary that breaks the rules, UnsupportedError for a kind of tokenizer or a
    pre-tokenizer that edgellm lacks. What can only be found by reading every token (duplicates, merges that
    make no token) is raised by the first `encode`.
    """
    kind = _name(metadata, "model", "the kind of tokenizer")
    if kind not in ("gpt2", "llama", "bert"):
        raise UnsupportedError(f"the tokenizer {kind!r:.60} is not supported; edgellm knows gpt2, llama and bert")
    vocabulary = Vocabulary(metadata)
    model: Model
    if kind == "gpt2":
        model = BytePairModel(vocabulary, _name(metadata, "pre", "the pre-tokenizer"))
    elif kind == "llama":
        model = SentencePieceModel(vocabulary)
    else:
        from edgellm.text.wordpiece import WordPieceModel  # seldom needed

        model = WordPieceModel(vocabulary)
    # GGUF does not say that the special tokens of Phi-3 swallow the white space behind them.
    strips_right = kind == "llama" and metadata.get("general.architecture") == "phi3"
    return Tokenizer(vocabulary, model, strips_right)


def _name(metadata: Mapping[str, Any], key: str, what: str) -> str:
    name = metadata.get(PREFIX + key)
    if not isinstance(name, str):
        found = "missing" if name is None else f"a {type(name).__name__}"
        raise FormatError(f"{PREFIX}{key} is {found}; expected the name of {what}")
    return name
