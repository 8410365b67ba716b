"""What a person may hand to a model, checked: token ids, messages, keywords. See also `edgellm.checks`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sized
from dataclasses import fields
from itertools import islice
from typing import Any

from edgellm.checks import wrong
from edgellm.errors import ContextOverflowError, UsageError, shown
from edgellm.params import SamplingParams

RENDERED = ("self", "messages", "add_generation_prompt")  # what `chat` itself gives a template


def checked_ids(name: str, token_ids: Any, n_vocab: int, most: int | None = None) -> list[int]:
    """Token ids of a vocabulary: ints of any kind, in anything that can be iterated but is no text, bytes or dict.

    No more than most + 1 of them are read.
    """
    expected = "token ids, whole numbers" if name != "prompt" else "a text (str) or token ids, whole numbers"
    if not isinstance(token_ids, Iterable) or isinstance(token_ids, (str, bytes, bytearray, Mapping)):
        raise wrong(name, token_ids, expected)
    ids: list[int] = []
    for found in islice(token_ids, None if most is None else most + 1):
        try:
            ids.append(operator.index(found))
        except TypeError:
            raise UsageError(f"{name} holds {shown(found)}; expected {expected}", parameter=name) from None
        if isinstance(found, bool):
            raise UsageError(f"{name} holds {found}; expected {expected}", parameter=name)
    if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
        beyond = shown(min(ids) if min(ids) < 0 else max(ids))
        raise UsageError(
            f"{name} holds {beyond}; the ids of this vocabulary go from 0 to {n_vocab - 1}", parameter=name
        )
    return ids


def checked_prompt(name: str, token_ids: Any, n_vocab: int, n_ctx: int, n_ctx_train: int) -> list[int]:
    """Token ids to compute: at least one, and no more than the context holds, or it is a ContextOverflowError."""
    ids = checked_ids(name, token_ids, n_vocab, n_ctx)
    what = "the prompt" if name == "prompt" else name
    if not ids:
        raise UsageError(f"{what} is empty; expected at least one token", parameter=name)
    if len(ids) > n_ctx:
        n_tokens = len(token_ids) if isinstance(token_ids, Sized) else f"more than {n_ctx}"
        advice = "shorten it; this model was trained on no longer texts"
        if n_ctx < n_ctx_train:
            advice = f"shorten it, or load with a larger n_ctx (up to {n_ctx_train})"
        raise ContextOverflowError(
            f"{what} has {n_tokens} tokens and the context holds {n_ctx}: {advice}",
            parameter="n_ctx" if n_ctx < n_ctx_train else name,
        )
    return ids


def checked_messages(messages: Any) -> list[Mapping[str, Any]]:
    """Messages of a chat: at least one dict with a "role"; what else they hold is the template's affair."""
    expected = 'a list of dicts like {"role": "user", "content": "Hello"}'
    if not isinstance(messages, Iterable) or isinstance(messages, (str, bytes, bytearray, Mapping)):
        raise wrong("messages", messages, expected)
    found = list(messages)
    if not found:
        raise UsageError("messages is empty; expected at least one message", parameter="messages")
    for message in found:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise UsageError(f"messages holds {shown(message)}; expected {expected}", parameter="messages")
    return found


def checked_variables(variables: Any) -> dict[str, Any]:
    """Variables for a chat template, by name; None for no variables."""
    if variables is None:
        return {}
    name = "template_variables"
    if not (isinstance(variables, Mapping) and all(isinstance(key, str) for key in variables)):
        raise wrong(name, variables, "a dict of values by name")
    for key in RENDERED:
        if key in variables:
            raise UsageError(f"{name} holds {key!r}, which chat() itself gives the template", parameter=name)
    return dict(variables)


def refuse_unknown(keywords: Mapping[str, Any]) -> None:
    """UsageError for a keyword that is no sampling parameter."""
    if keywords:
        import difflib

        word, names = next(iter(keywords)), [field.name for field in fields(SamplingParams)]
        close = difflib.get_close_matches(word, names, 1)
        expected = f"did you mean {close[0]}?" if close else f"expected {', '.join(names)}"
        raise UsageError(f"{word} is no sampling parameter; {expected}", parameter=word)
