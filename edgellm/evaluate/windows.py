"""A long text in windows of equal length: how evaluation and importance matrices go through it."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import UsageError, counted
from edgellm.params import LEAST_WINDOW
from edgellm.text import Tokenizer


def windows(
    tokenizer: Tokenizer, token_ids: Sequence[int], n_ctx: int, n_windows: int | None = None
) -> list[list[int]]:
    """The first windows of n_ctx tokens, all or up to n_windows; what is left at the end of the text is not used.

    A model that wants a BOS token before every text finds it in the place of each window's first token. That is how
    llama.cpp divides a text too, so figures can be compared.

    Raises UsageError when the text fills no window.
    """
    if n_ctx < LEAST_WINDOW:
        raise UsageError(f"a window of {n_ctx} tokens; expected at least {LEAST_WINDOW}")
    if n_windows is not None and n_windows < 1:
        raise UsageError(f"{n_windows} windows; expected at least 1")
    if len(token_ids) < n_ctx:
        raise UsageError(
            f"the text has {counted(len(token_ids), 'token')} and one window needs {n_ctx}; give a longer text or a "
            "shorter window"
        )
    begin = bos_of(tokenizer)
    n = min(len(token_ids) // n_ctx, n_windows or len(token_ids))
    return [[*begin, *token_ids[i * n_ctx + len(begin) : (i + 1) * n_ctx]] for i in range(n)]


def bos_of(tokenizer: Tokenizer) -> list[int]:
    """The BOS token, if the model wants one before every text."""
    begin = tokenizer.encode("", add_special=True)[:1]
    return begin if begin == [tokenizer.bos_id] else []
