"""A model's vocabulary as llguidance wants it, made once for a tokenizer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

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
    """The tokens, under the names that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        texts = tokenizer.texts_of_tokens
        self.tokens = [*texts[:n_vocab], *[b""] * (n_vocab - len(texts))]
        self.special_token_ids = [i for i in tokenizer.control_ids if i < n_vocab]
        for i in self.special_token_ids:  # which no text makes
            self.tokens[i] = tokenizer.token_name(i).encode()
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(ends(tokenizer, n_vocab))
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


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
