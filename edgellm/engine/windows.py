"""A long text in windows of equal length: how evaluation and importance matrices go through it."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import UsageError
from edgellm.text import Tokenizer

LEAST_TOKENS = 8  # of a window: some to read and some to score


def windows(
    tokenizer: Tokenizer, token_ids: Sequence[int], n_ctx: int, n_windows: int | None = None
) -> list[list[int]]:
    """The first windows of n_ctx tokens, all or up to n_windows; what is left at the end of the text is not used.

    A model that wants a BOS token before every text finds it in the place of each window's first token. That is how
    llama.cpp divides a text too, so figures can be compared.

    Raises UsageError when the text fills no window.
    """
    if n_ctx < LEAST_TOKENS:
        raise UsageError(f"a window of {n_ctx} tokens; expected at least {LEAST_TOKENS}")
    if n_windows is not None and n_windows < 1:
        raise UsageError(f"{n_windows} windows; expected at least 1")
    if len(token_ids) < n_ctx:
        raise UsageError(
            f"the text has {len(token_ids)} tokens and one window needs {n_ctx}; give a longer text or a shorter window"
        )
    begin = [tokenizer.bos_id] if adds_bos(tokenizer) else []
    n = min(len(token_ids) // n_ctx, n_windows or len(token_ids))
    return [[*begin, *token_ids[i * n_ctx + len(begin) : (i + 1) * n_ctx]] for i in range(n)]


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the model wants a BOS token before every text."""
    return tokenizer.bos_id is not None and tokenizer.encode("", add_special=True)[:1] == [tokenizer.bos_id]
