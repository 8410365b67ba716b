"""What a person may hand to a model, checked: prompts, messages, keywords. See also `edgellm.checks`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from edgellm import checks
from edgellm.engine.recommended import recommended_over_defaults
from edgellm.errors import ContextOverflowError, UsageError
from edgellm.params import ChatParams, SamplingParams
from edgellm.text.messages import check_contents

Method = TypeVar("Method", bound=Callable[..., Any])

RENDERED = ("self", "messages", "add_generation_prompt")  # what `chat` itself gives a template


def checked_prompt(name: str, token_ids: Any, n_vocab: int, n_ctx: int, n_ctx_train: int) -> list[int]:
    """Token ids to compute: at least one, and no more than the context holds, or it is a ContextOverflowError."""
    ids = checks.token_ids(name, token_ids, n_vocab, n_ctx)
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


def with_virtual(name: str, token_ids: list[int], n_virtual: int, n_ctx: int) -> list[int]:
    """Ids as the model computes them with an adapter that puts its own tokens before a text: any id stands for those.

    Raises ContextOverflowError when both do not fit.
    """
    if len(token_ids) + n_virtual > n_ctx:
        what = "the prompt" if name == "prompt" else name
        raise ContextOverflowError(
            f"{what} has {len(token_ids)} tokens, the adapter puts {n_virtual} of its own before them, and the context "
            f"holds {n_ctx}: shorten it, or load with a larger n_ctx",
            parameter=name,
        )
    return [0] * n_virtual + token_ids if n_virtual else token_ids


def checked_messages(messages: Any) -> list[Any]:
    """Messages of a chat: at least one, each with a content; what else they hold is checked where they are rendered."""
    expected = 'a list of dicts like {"role": "user", "content": "Hello"}'
    if not isinstance(messages, Iterable) or isinstance(messages, (str, bytes, bytearray, Mapping)):
        raise checks.wrong("messages", messages, expected)
    found = list(messages)
    if not found:
        raise UsageError("messages is empty; expected at least one message", parameter="messages")
    check_contents(found)
    return found


def checked_adapters(adapters: Any) -> dict[str, float] | None:
    """Scales by the names of adapters; a name alone, or each in a list, counts 1. None stays None.

    A scale is a finite number of float32, which kernels take.
    """
    if adapters is None:
        return None
    name, expected = "adapters", 'scales by name, such as {"style": 0.5}, or a list of names'
    names = [adapters] if isinstance(adapters, str) else adapters
    if not isinstance(names, Iterable) or isinstance(names, (bytes, bytearray)):
        raise checks.wrong(name, adapters, expected)
    scales = dict(names) if isinstance(names, Mapping) else dict.fromkeys(checks.texts(name, names), 1.0)
    most = float(np.finfo(np.float32).max)
    return {checks.text(name, key): checks.number(f"{name}[{key!r}]", x, -most, most) for key, x in scales.items()}


def checked_variables(variables: Any) -> dict[str, Any]:
    """Variables for a chat template, by name; None for no variables."""
    if variables is None:
        return {}
    name = "template_variables"
    if not (isinstance(variables, Mapping) and all(isinstance(key, str) for key in variables)):
        raise checks.wrong(name, variables, "a dict of values by name")
    for key in RENDERED:
        if key in variables:
            raise UsageError(f"{name} holds {key!r}, which chat() itself gives the template", parameter=name)
    return dict(variables)


def sampling_params(keywords: Mapping[str, Any], recommended: Mapping[str, Any]) -> SamplingParams:
    """The parameters that keywords give, over those that the model's file recommends.

    UsageError for a keyword that is none, and for what cannot work.
    """
    _check_names(keywords, SamplingParams)
    return recommended_over_defaults(recommended, keywords)


def chat_params(keywords: Mapping[str, Any], recommended: Mapping[str, Any]) -> tuple[ChatParams, SamplingParams]:
    """The same for a chat, which may ask for more."""
    _check_names(keywords, ChatParams, SamplingParams)
    names = {field.name for field in fields(ChatParams)}
    wishes = {word: value for word, value in keywords.items() if word in names}
    sampling = {word: value for word, value in keywords.items() if word not in names}
    return ChatParams(**wishes), recommended_over_defaults(recommended, sampling)


def _check_names(keywords: Mapping[str, Any], *kinds: Any) -> None:
    names = [field.name for kind in kinds for field in fields(kind)]
    for word in keywords:
        if word not in names:
            import difflib

            close = difflib.get_close_matches(word, names, 1)
            own = ", ".join(field.name for field in fields(SamplingParams))
            expected = f"did you mean {close[0]}?" if close else f"expected {own}"
            if any(word == field.name for field in fields(ChatParams)):
                expected = "it is for chat()"
            raise UsageError(f"{word} is no sampling parameter; {expected}", parameter=word)


def check_biases(params: SamplingParams, n_vocab: int) -> None:
    """UsageError for the bias of a token that the model does not have."""
    most = max(params.logit_bias or {0: 0.0})
    if most >= n_vocab:
        raise UsageError(
            f"logit_bias holds the token {most}; the ids of this model go from 0 to {n_vocab - 1}",
            parameter="logit_bias",
        )


def spelled_out(method: Method) -> Method:
    """Let a method that takes **sampling show each keyword and default of `SamplingParams`, as in help()."""
    return _spelled_out(method, SamplingParams)


def spelled_out_for_chat(method: Method) -> Method:
    """The same with `ChatParams`."""
    return _spelled_out(method, ChatParams, SamplingParams)


def _spelled_out(method: Method, *kinds: Any) -> Method:
    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for kind in kinds
        for field in fields(kind)
    ]
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method
