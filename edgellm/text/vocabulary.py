"""The vocabulary that a GGUF file carries: tokens, their types and scores, and the ids with a role.

Nothing is decoded or indexed before it is needed: a vocabulary may hold 262 thousand tokens, and naming one
token must not cost a pass over all of them. Keys and token types are those of the GGUF specification,
section "Tokenizer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from edgellm.errors import FormatError, UsageError
from edgellm.text.ends import AMBIGUOUS, UNMISTAKABLE, end_names
from edgellm.text.string_index import StringIndex, as_bytes

PREFIX = "tokenizer.ggml."
FEW = 8  # tokens are read one by one where they are fewer than one of so many
OURS = "edgellm.tokenizer."  # what GGUF has no key for
NO_ID = (-1, 2**32 - 1, 2**64 - 1)  # how files write that no token has a role

# The roles that tokens have by habit, in files that do not name them, as llama.cpp takes them.
_HABITS = {
    "llama": {"unknown": 0, "bos": 1, "eos": 2},
    "bert": {"padding": 0, "unknown": 100, "cls": 101, "seperator": 102, "mask": 103},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"padding": 0, "eos": 1, "unknown": 2},
}
ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask")  # spelled so in GGUF
_BYTE = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_STEERING = re.compile(rb"<\|.*\|>|<\xef\xbd\x9c.*\xef\xbd\x9c>", re.DOTALL)
_BRACKETED = re.compile(rb"<.+>|\[.+\]", re.DOTALL)


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

    `scores` is float32 of shape (n,) or None when the file has none; `notes` is what a person should know.
    Raises FormatError for lists that are too short, and values of the wrong type. Duplicates are found when the tokens
    are first indexed, a token that is not UTF-8 when it is first used, an id that is none when it is needed.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.notes: list[str] = []
        self._tokens = self.strings("tokens")
        self.n = len(self._tokens)
        if self.n == 0:
            raise FormatError(f"{PREFIX}tokens is empty; expected at least one token")
        self._stored_types = self._numbers("token_type", "integers", "iu")
        self.scores = self._numbers("scores", "numbers", "fiu")
        if self.scores is not None and np.isnan(self.scores).any():
            raise FormatError(f"{PREFIX}scores holds a score that is not a number")

    def token(self, token_id: int) -> bytes:
        """One token as the file spells it, as UTF-8; only this token is read."""
        self._check(token_id)
        token = self.tokens[token_id] if "tokens" in self.__dict__ else self._tokens[token_id]
        if isinstance(token, str):
            return token.encode()
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
    def ids(self) -> StringIndex:
        """Finds the id of a token; an empty token, which can never be produced, may stand several times."""
        ids = StringIndex(self._tokens)
        if ids.has_repeated():
            raise FormatError(f"{self._first_duplicate()}; expected each token once")
        return ids

    @cached_property
    def types(self) -> np.ndarray:
        """The type of every token, int32 of shape (n,): what the file says, or where it does not, what names tell."""
        if self._stored_types is None:
            self.notes.append(f"the file has no {PREFIX}token_type: the types of its tokens are told by their names")
            return np.array([self._type_by_name(i, token) for i, token in enumerate(self.tokens)], np.int32)
        types = self._stored_types.astype(np.int32)
        for name in UNMISTAKABLE + AMBIGUOUS:
            token_id = self.ids.get(name)
            if token_id is not None and types[token_id] == TokenType.NORMAL and self._steers(name):
                types[token_id] = TokenType.CONTROL
                self.notes.append(
                    f"token {token_id} ({name.decode()!r}) is marked as text in the file; it is taken for a control "
                    "token, as its name says"
                )
        return types

    def of_type(self, *types: TokenType) -> list[int]:
        """The ids of all tokens that have one of these types, in order."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def spelled(self, *types: TokenType) -> dict[str, int]:
        """The tokens of these types by their text, without empty ones."""
        ids = self.of_type(*types)
        if len(ids) < self.n // FEW:
            return {token.decode(): token_id for token_id in ids if (token := self.token(token_id))}
        tokens = self.tokens  # all of them, as there may be millions
        try:
            return {tokens[token_id].decode(): token_id for token_id in ids if tokens[token_id]}
        except UnicodeDecodeError:
            return {self.token(token_id).decode(): token_id for token_id in ids}  # says which it is

    def is_type(self, token_id: int, token_type: TokenType) -> bool:
        """Whether a token has this type."""
        return self.type_of(token_id) == token_type

    def type_of(self, token_id: int) -> int:
        """The type of a token; no other token is read for it."""
        self._check(token_id)
        # A Python number: one of NumPy asks the enum's class when it is compared: slow, and a Ctrl-C there is lost.
        if "types" in self.__dict__:
            return int(self.types[token_id])
        if self._stored_types is None:
            return self._type_by_name(token_id, self.token(token_id))
        stored = int(self._stored_types[token_id])
        return TokenType.CONTROL if stored == TokenType.NORMAL and self._steers(self.token(token_id)) else stored

    def _steers(self, token: bytes) -> bool:
        """Whether a token that is marked as text has the name of one that ends answers, and is no word of a text."""
        return token in UNMISTAKABLE or (token in AMBIGUOUS and not self._is_joined(token))

    def _is_joined(self, token: bytes) -> bool:
        """Whether merging can make a token, by the list of merges or of two others."""
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [left + b" " + right for left, right in halves if left in self.ids and right in self.ids]
        return any(pair in self.ranks for pair in pairs) if f"{PREFIX}merges" in self._metadata else bool(pairs)

    @cached_property
    def merges(self) -> list[bytes]:
        """The merges as the file spells them: two tokens with a space between, best first."""
        return as_bytes(self.strings("merges"))

    @cached_property
    def ranks(self) -> StringIndex:
        """Finds the place of a merge in the list, by its spelling there; the last one of a repeated merge."""
        return StringIndex(self.strings("merges"))

    def _type_by_name(self, token_id: int, token: bytes) -> int:
        if _BYTE.fullmatch(token) and self.kind == "llama":
            return TokenType.BYTE
        if token_id == self._named_ids.get("unknown"):
            return TokenType.UNKNOWN
        has_role = token_id in self._named_ids.values() and _BRACKETED.fullmatch(token)
        return TokenType.CONTROL if has_role or _STEERING.fullmatch(token) or self._steers(token) else TokenType.NORMAL

    @cached_property
    def _named_ids(self) -> dict[str, int]:
        """The ids that the file gives roles, or habit where it has no type for any token."""
        habits = _HABITS.get(self.kind, {})
        found = {role: self._stored_id(role) for role in ROLES}
        return {role: habits.get(role, -1) if token_id is None else token_id for role, token_id in found.items()}

    @property
    def kind(self) -> str:
        """`tokenizer.ggml.model`: "gpt2", "llama", "bert", ..."""
        kind = self._metadata.get(PREFIX + "model")
        return kind if isinstance(kind, str) else ""

    def role_id(self, role: str) -> int | None:
        """The id that the file, or else habit, gives a role ("bos", "eos", "unknown", ...), or None.

        An id by habit counts if its token is set apart from text.
        """
        token_id = self._stored_id(role)
        if token_id is not None:
            return token_id
        token_id = _HABITS.get(self.kind, {}).get(role)
        if token_id is None or token_id >= self.n:
            return None
        return token_id if self.type_of(token_id) in (TokenType.CONTROL, TokenType.UNKNOWN) else None

    def role_ids(self, role: str) -> list[int]:
        """All ids that the file gives a role under its key, most often one or none."""
        return self._ids(f"{PREFIX}{role}_token_id") + self._ids(f"{PREFIX}{role}_token_ids")

    def _stored_id(self, role: str) -> int | None:
        ids = self._ids(f"{PREFIX}{role}_token_id")
        return ids[0] if ids else None

    def marked(self, name: str) -> frozenset[int] | None:
        """The ids of an array of our own, `edgellm.tokenizer.*`; None when the file does not have it."""
        key = OURS + name
        return frozenset(self._ids(key)) if key in self._metadata else None

    def _ids(self, key: str) -> list[int]:
        """The id or ids under a key, without those that stand for none or lie beyond the vocabulary."""
        value = self._metadata.get(key)
        if value is None:
            return []
        found = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        for token_id in found:
            if isinstance(token_id, (bool, np.bool_)) or not isinstance(token_id, (int, np.integer)):
                raise FormatError(f"{key} is {kind_of(value)}; expected a token id")
        beyond = [int(i) for i in found if not 0 <= i < self.n and int(i) not in NO_ID]
        if beyond:
            note = f"{key} is {beyond[0]}, but the vocabulary has {self.n} tokens; it is not used"
            if note not in self.notes:
                self.notes.append(note)
        return [int(i) for i in found if 0 <= i < self.n]

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends an answer: those that the file names, and those whose name says so."""
        found = {token_id for role in ("eos", "eot", "eom") for token_id in self.role_ids(role)}
        found |= {i for i in [self.role_id("eos")] if i is not None} | (self.marked("stop_ids") or set())
        for name in end_names(self.ids):
            token_id = self.ids.get(name)
            # Gemma has HTML's tags as user-defined tokens, among them </s>.
            apart = (TokenType.CONTROL, *([TokenType.USER_DEFINED] if name in UNMISTAKABLE else []))
            if token_id is not None and self.types[token_id] in apart:
                found.add(token_id)
        return frozenset(found)

    def added(self, role: str, default: bool) -> list[int]:
        """The token of a role if it is added to texts, as the file says (`add_bos_token`) or by `default`.

        FormatError when the file says so and names no token.
        """
        if not self.flag(f"add_{role}_token", default):
            return []
        token_id = self.role_id(role)
        if token_id is not None:
            return [token_id]
        if f"{PREFIX}add_{role}_token" in self._metadata:
            raise FormatError(f"the file adds a {role} token to texts, but has no {PREFIX}{role}_token_id")
        self.notes.append(f"the file has no {PREFIX}{role}_token_id: texts go without the {role} token of their kind")
        return []

    def flag(self, name: str, default: bool) -> bool:
        """A yes or no of the file, such as "add_bos_token"."""
        return self._flag(PREFIX + name, default)

    def our_texts(self, name: str) -> list[str] | None:
        """Some names of our own, `edgellm.tokenizer.*`; None when the file does not have them."""
        value = self._metadata.get(OURS + name)
        if value is None:
            return None
        if not hasattr(value, "as_bytes") and not (isinstance(value, list) and all(type(v) is str for v in value)):
            raise FormatError(f"{OURS}{name} is {kind_of(value)}; expected an array of texts")
        return [text.decode(errors="replace") for text in as_bytes(value)]

    def our_flag(self, name: str, default: bool) -> bool:
        """A yes or no of our own, `edgellm.tokenizer.*`."""
        return self._flag(OURS + name, default)

    def _flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{key} is {kind_of(value)}; expected true or false")
        return bool(value)

    def text(self, key: str) -> str | None:
        """A text of the file, under its whole key."""
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{key} is {kind_of(value)}; expected a text")
        return value

    def bytes_of(self, name: str) -> bytes:
        """An array of bytes of the file; empty when it has none."""
        value = self._metadata.get(PREFIX + name)
        if value is None:
            return b""
        array = np.asarray(value)
        if (
            array.dtype.kind not in "iu"
            or array.ndim != 1
            or (array.size and not -128 <= array.min() <= array.max() < 256)
        ):
            raise FormatError(f"{PREFIX}{name} is {kind_of(value)}; expected an array of bytes")
        return (array.astype(np.int64) & 255).astype(np.uint8).tobytes()

    def strings(self, name: str) -> Any:
        """An array of strings of the file: a list, or a lazy sequence that offers `as_bytes()`."""
        value = self._metadata.get(PREFIX + name)
        if value is None:
            raise FormatError(f"the file has no {PREFIX}{name}; its tokenizer needs them")
        if isinstance(value, (list, tuple)):
            if not all(isinstance(item, (str, bytes)) for item in value):
                raise FormatError(f"{PREFIX}{name} holds something else than strings")
        elif not hasattr(value, "as_bytes"):
            raise FormatError(f"{PREFIX}{name} is {kind_of(value)}; expected an array of strings")
        return value

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.n:
            raise UsageError(f"token {token_id} does not exist; expected an id from 0 to {self.n - 1}")

    def _numbers(self, name: str, what: str, kinds: str) -> np.ndarray | None:
        value = self._metadata.get(PREFIX + name)
        if value is None:
            return None
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            array = np.zeros((0, 0))
        if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
            raise FormatError(f"{PREFIX}{name} is not an array of {what}")
        if array.size < self.n:
            raise FormatError(f"{PREFIX}{name} has {array.size} entries; expected {self.n}, one per token")
        if array.size > self.n:
            self.notes.append(f"{PREFIX}{name} has {array.size} entries for {self.n} tokens; the last are not used")
        return array[: self.n]

    def _first_duplicate(self) -> str:
        seen: dict[bytes, int] = {}
        for token_id, token in enumerate(self.tokens):
            if token and token in seen:
                shown = token.decode(errors="replace")
                return f"tokens {seen[token]} and {token_id} are both {shown!r}"
            seen[token] = token_id
        raise AssertionError("called without a duplicate")


def kind_of(value: Any) -> str:
    """ "an array" and the like, for errors about metadata."""
    kinds: dict[type, str] = {bool: "true or false", np.bool_: "true or false", str: "a text", int: "a whole number"}
    if type(value) in kinds:
        return kinds[type(value)]
    if isinstance(value, (float, np.floating)):
        return "a number with a fraction"
    return (
        "a whole number" if isinstance(value, np.integer) else "an array" if hasattr(value, "__len__") else "no value"
    )
