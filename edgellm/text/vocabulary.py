"""The vocabulary that a GGUF file carries: tokens, their types and scores, and the ids with a role.

Nothing is decoded or indexed before it is needed: a vocabulary may hold 262 thousand tokens, and naming one
token must not cost a pass over all of them. Keys and token types are those of the GGUF specification,
section "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from edgellm.errors import FormatError, UsageError

PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """What `tokenizer.ggml.token_type` says about a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """Tokens by id, and ids by token, of one GGUF file.

    `types` is int32 of shape (n,), `scores` float32 of shape (n,) or None when the file has none.
    Raises FormatError for lengths that differ, ids beyond the vocabulary, and values of the wrong type.
    Duplicates are found when the tokens are first indexed, a token that is not UTF-8 when it is first used.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._tokens = self.strings("tokens")
        self.n = len(self._tokens)
        if self.n == 0:
            raise FormatError(f"{PREFIX}tokens is empty; expected at least one token")
        types = self._numbers("token_type", "integers", "iu")
        self.types = np.full(self.n, TokenType.NORMAL, np.int32) if types is None else types
        self.scores = self._numbers("scores", "numbers", "fiu")
        if self.scores is not None and np.isnan(self.scores).any():
            raise FormatError(f"{PREFIX}scores holds a score that is not a number")

    def token(self, token_id: int) -> bytes:
        """One token as the file spells it, as UTF-8; only this token is read."""
        self._check(token_id)
        if "tokens" not in self.__dict__:
            token = self._tokens[token_id]
            return token.encode() if isinstance(token, str) else token
        token = self.tokens[token_id]
        try:
            token.decode()
        except UnicodeDecodeError:
            raise FormatError(f"token {token_id} of the vocabulary is not UTF-8: {token[:40]!r}") from None
        return token

    @cached_property
    def tokens(self) -> list[bytes]:
        """Every token as the file spells it; whether it is UTF-8 is not looked at."""
        return as_bytes(self._tokens)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of every token; an empty token, which can never be produced, may stand several times."""
        ids = dict(zip(self.tokens, range(self.n), strict=True))
        if len(ids) < self.n and len(ids) - (b"" in ids) + self.tokens.count(b"") < self.n:
            raise FormatError(f"{self._first_duplicate()}; expected each token once")
        ids.pop(b"", None)
        return ids

    def of_type(self, *types: TokenType) -> list[int]:
        """The ids of all tokens that have one of these types, in order."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def spelled(self, *types: TokenType) -> dict[str, int]:
        """The tokens of these types by their text, without empty ones."""
        tokens = self.tokens  # all of them, as there may be thousands
        return {self.token(token_id).decode(): token_id for token_id in self.of_type(*types) if tokens[token_id]}

    def is_type(self, token_id: int, token_type: TokenType) -> bool:
        """Whether a token has this type."""
        self._check(token_id)
        # Not compared as a NumPy number, which asks the enum's class first: slow, and a Ctrl-C there is lost.
        return int(self.types[token_id]) == token_type

    def role_id(self, role: str) -> int | None:
        """The id that the file gives a role ("bos", "eos", "unknown", ...), or None."""
        key = f"{PREFIX}{role}_token_id"
        token_id = self._metadata.get(key)
        if token_id is None:
            return None
        if isinstance(token_id, bool) or not isinstance(token_id, (int, np.integer)):
            raise FormatError(f"{key} is a {type(token_id).__name__}; expected a token id")
        if not 0 <= token_id < self.n:
            raise FormatError(f"{key} is {token_id}; expected an id of the {self.n} tokens in the vocabulary")
        return int(token_id)

    def added(self, role: str, default: bool) -> list[int]:
        """The token of a role if it is added to texts, as the file says (`add_bos_token`) or by `default`."""
        if not self.flag(f"add_{role}_token", default):
            return []
        token_id = self.role_id(role)
        if token_id is None:
            raise FormatError(f"the file adds a {role} token to texts, but has no {PREFIX}{role}_token_id")
        return [token_id]

    def flag(self, name: str, default: bool) -> bool:
        """A yes or no of the file, such as "add_bos_token"."""
        value = self._metadata.get(PREFIX + name, default)
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{PREFIX}{name} is a {type(value).__name__}; expected true or false")
        return bool(value)

    def strings(self, name: str) -> Any:
        """An array of strings of the file: a list, or a lazy sequence that offers `as_bytes()`."""
        value = self._metadata.get(PREFIX + name)
        if value is None:
            raise FormatError(f"the file has no {PREFIX}{name}; its tokenizer needs them")
        if isinstance(value, (list, tuple)):
            if not all(isinstance(item, (str, bytes)) for item in value):
                raise FormatError(f"{PREFIX}{name} holds something else than strings")
        elif not hasattr(value, "as_bytes"):
            raise FormatError(f"{PREFIX}{name} is a {type(value).__name__}; expected an array of strings")
        return value

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.n:
            raise UsageError(f"token {token_id} does not exist; expected an id from 0 to {self.n - 1}")

    def _numbers(self, name: str, what: str, kinds: str) -> np.ndarray | None:
        value = self._metadata.get(PREFIX + name)
        if value is None:
            return None
        array = np.asarray(value)
        if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
            raise FormatError(f"{PREFIX}{name} is not an array of {what}")
        if array.size != self.n:
            raise FormatError(f"{PREFIX}{name} has {array.size} entries; expected {self.n}, one per token")
        return array

    def _first_duplicate(self) -> str:
        seen: dict[bytes, int] = {}
        for token_id, token in enumerate(self.tokens):
            if token and token in seen:
                shown = token.decode(errors="replace")
                return f"tokens {seen[token]} and {token_id} are both {shown!r}"
            seen[token] = token_id
        raise AssertionError("called without a duplicate")


def as_bytes(strings: Any) -> list[bytes]:
    """The strings of a lazy sequence or a list, each as UTF-8."""
    if hasattr(strings, "as_bytes"):
        return strings.as_bytes()
    return [item.encode() if isinstance(item, str) else item for item in strings]
