"""Tokens and their log-probabilities, as text completions tell them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from edgellm.engine.openai.shapes import LEAST
from edgellm.engine.sampling import TokenLogprobs
from edgellm.text import Tokenizer


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST


def text_of(tokenizer: Tokenizer, token_id: int) -> str:
    """A token by itself; bytes that are no character stand as the sign for that."""
    return _bytes_of(tokenizer, token_id).decode("utf-8", "replace")


def piece_of(tokenizer: Tokenizer, token_id: int) -> str | list[int]:
    """A token by itself, as llama.cpp writes it: one that is a part of a character is a list of its bytes."""
    raw = _bytes_of(tokenizer, token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _bytes_of(tokenizer: Tokenizer, token_id: int) -> bytes:
    return tokenizer.token_bytes(token_id) or tokenizer.token_name(token_id).encode()


class TextLogprobs:
    """Of a text completion: lists side by side, with the place of each token in the text."""

    def __init__(self, tokenizer: Tokenizer, n_top: int, offset: int = 0) -> None:
        self._tokenizer, self._n_top, self._offset = tokenizer, n_top, offset

    def shaped(self, found: Iterable[TokenLogprobs | int]) -> dict[str, Any]:
        """Those of some more tokens; of the first of a text, whose id stands alone, nothing is known."""
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for one in found:
            token_id = one if isinstance(one, int) else one.token_id
            tokens.append(text_of(self._tokenizer, token_id))
            offsets.append(self._offset)
            self._offset += len(tokens[-1])
            if isinstance(one, int):
                logprobs.append(None)
                tops.append(None)
                continue
            logprobs.append(finite(one.logprob))
            top: dict[str, float] = {}
            for other, logprob in one.top[: self._n_top]:
                top.setdefault(text_of(self._tokenizer, other), finite(logprob))  # the likelier of two alike
            tops.append(top)
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops if self._n_top else None,
            "text_offset": offsets,
        }
