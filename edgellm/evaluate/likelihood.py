"""Perplexity: among how many equally likely tokens a model would have to guess, on average."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgellm.engine import Model
from edgellm.evaluate.scores import Floats, first_scored, log_sum, scored_rows, standard_error
from edgellm.evaluate.windows import windows
from edgellm.params import DEFAULT_WINDOW

Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Perplexity:
    """How well a model foresees a text.

    perplexity, perplexity_error:  exp of the mean negative log-likelihood of a token; standard error.
    n_scored:                      tokens that were foreseen: the second half of each window.
    tokens_per_second:             of all tokens of the windows, scoring included.
    """

    perplexity: float
    perplexity_error: float
    n_windows: int
    n_ctx: int
    n_scored: int
    seconds: float
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    model: Model,
    token_ids: Sequence[int],
    n_ctx: int = DEFAULT_WINDOW,
    n_windows: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity of a text as llama.cpp measures it: see `windows`, of which each is read by itself.

    token_ids:  the whole text, as `tokenize(text, add_special=True)` gives it.
    progress:   is called with (windows done, windows in all, perplexity so far or, at first, None).

    Raises UsageError for a text that is too short, ContextOverflowError for windows longer than the model's context.
    """
    started = time.perf_counter()
    parts = windows(model.tokenizer, token_ids, n_ctx, n_windows)
    nlls: list[float] = []
    for done, window in enumerate(parts):
        if progress:
            progress(done, len(parts), perplexity_of(np.array(nlls))[0] if nlls else None)
        foreseen = window[first_scored(n_ctx) + 1 :]
        rows = scored_rows(model, window)
        nlls += [log_sum(row) - float(row[token]) for row, token in zip(rows, foreseen, strict=True)]
    seconds = time.perf_counter() - started
    value, error = perplexity_of(np.array(nlls))
    if progress:
        progress(len(parts), len(parts), value)
    return Perplexity(
        perplexity=value,
        perplexity_error=error,
        n_windows=len(parts),
        n_ctx=n_ctx,
        n_scored=len(nlls),
        seconds=seconds,
        tokens_per_second=len(parts) * n_ctx / seconds,
    )


def perplexity_of(nlls: Floats) -> tuple[float, float]:
    """The perplexity and its standard error; infinity beyond what a float holds."""
    with np.errstate(over="ignore"):
        value = float(np.exp(nlls.mean()))
    return value, value * standard_error(nlls)
