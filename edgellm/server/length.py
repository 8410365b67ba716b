"""Texts that are far too long are refused before time is spent on their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from edgellm.engine import Model
from edgellm.errors import ContextOverflowError
from edgellm.text import Tokenizer

_longest: WeakKeyDictionary[Tokenizer, int] = WeakKeyDictionary()


def check_length(model: Model, n_characters: int) -> None:
    """Raise ContextOverflowError for a text that would not fit if each of its tokens were the longest there is."""
    tokenizer = model.tokenizer
    if (longest := _longest.get(tokenizer)) is None:
        longest = max(len(tokenizer.token_bytes(i) or tokenizer.token_name(i)) for i in range(tokenizer.n_vocab))
        _longest[tokenizer] = longest
    if n_characters > model.n_ctx * longest:
        raise ContextOverflowError(
            f"the prompt has {n_characters} characters, more than the context of {model.n_ctx} tokens can hold: "
            "shorten it"
        )


def check_chat_length(model: Model, messages: Sequence[Mapping[str, Any]]) -> None:
    """The same for a chat, of which each message takes a token at least."""
    if len(messages) > model.n_ctx:
        raise ContextOverflowError(
            f"the chat has {len(messages)} messages, more than the context of {model.n_ctx} tokens can hold: shorten it"
        )
    check_length(model, sum(_of(message.get("content")) for message in messages))


def _of(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        return sum(_of(part.get("text") if isinstance(part, dict) else part) for part in content)
    return 0
