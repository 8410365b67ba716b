"""A model's vocabulary as llguidance wants it, made once for a tokenizer."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakMethod

from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.text import Tokenizer

_made: WeakKeyDictionary[Tokenizer, dict[int, Any]] = WeakKeyDictionary()
_making = threading.Lock()


def guidance() -> Any:
    """The module llguidance. Raises UsageError that says how to install it."""
    try:
        import llguidance
    except ImportError:
        raise UsageError(
            "answers of a given structure need the package llguidance, which is not installed; "
            'pip install "edgellm[structure]" brings it'
        ) from None
    return llguidance


def vocabulary_of(tokenizer: Tokenizer, n_vocab: int) -> Any:
    """The tokens that a model can produce, as an LLTokenizer. n_vocab: as many logits as it has."""
    with _making:
        made = _made.setdefault(tokenizer, {})
        if n_vocab not in made:
            made[n_vocab] = _make(tokenizer, n_vocab)
        return made[n_vocab]


class _Tokens:
    """The tokens, under the names that llguidance asks for. They do not keep the tokenizer, which has a file mapped."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        texts = tokenizer.texts_of_tokens
        self.tokens = [*texts[:n_vocab], *[b""] * (n_vocab - len(texts))]
        self.special_token_ids = [i for i in tokenizer.control_ids if i < n_vocab]
        for i in self.special_token_ids:  # which no text makes
            self.tokens[i] = tokenizer.token_name(i).encode()
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(ends(tokenizer, n_vocab))
        self._encode, self._bytes = WeakMethod(tokenizer.encode_inside), texts

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text inside of another one."""
        data = text if isinstance(text, bytes) else text.encode()
        encode = self._encode()
        ids = encode(data.decode("utf-8", "replace")) if encode is not None else []
        return ids if b"".join(map(self._bytes.__getitem__, ids)) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest tokens one after the other, for a text that the tokenizer itself would not give back."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            found = next((self._ids[data[at:end]] for end in ends if data[at:end] in self._ids), None)
            if found is None:
                return ids
            ids.append(found)
            at += len(self._bytes[found])
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {text: i for i, text in reversed(list(enumerate(self._bytes))) if text}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=1)


def ends(tokenizer: Tokenizer, n_vocab: int) -> list[int]:
    """The tokens that end an answer. Where a vocabulary has none, a number that no token has."""
    return sorted(i for i in tokenizer.stop_ids if i < n_vocab) or [n_vocab]


def _make(tokenizer: Tokenizer, n_vocab: int) -> Any:
    llguidance = guidance()
    tokens = _Tokens(tokenizer, n_vocab)
    stop_ids = ends(tokenizer, n_vocab)
    if stop_ids == [n_vocab]:
        tokens.tokens.append(b"<end>")
        tokens.special_token_ids.append(n_vocab)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens), n_vocab=len(tokens.tokens), eos_token=stop_ids)
