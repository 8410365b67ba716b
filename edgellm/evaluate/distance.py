"""How far a model is from another with the same vocabulary: what quantizing cost, for example."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.engine import Model
from edgellm.errors import UsageError
from edgellm.evaluate.likelihood import Progress, perplexity_of
from edgellm.evaluate.scores import Floats, Row, compare, first_scored, scored_rows, standard_error
from edgellm.evaluate.windows import windows
from edgellm.params import DEFAULT_WINDOW


@dataclass(frozen=True)
class Distance:
    """Kullback-Leibler divergence from a base, token by token, in nats; and how often the likeliest token is the same.

    Errors are standard errors.
    """

    mean: float
    mean_error: float
    median: float
    percentile_99: float
    maximum: float
    same_top: float
    same_top_error: float

    @classmethod
    def of(cls, divergences: Floats, same_top: NDArray[np.bool_]) -> Distance:
        return cls(
            mean=float(divergences.mean()),
            mean_error=standard_error(divergences),
            median=float(np.median(divergences)),
            percentile_99=float(np.percentile(divergences, 99)),
            maximum=float(divergences.max()),
            same_top=float(same_top.mean()),
            same_top_error=standard_error(same_top),
        )

    @classmethod
    def between(cls, base: Iterable[Row], own: Iterable[Row]) -> Distance:
        """Of logits from the base's logits, row by row: float32 [n_tokens, n_vocab] both, or as many rows."""
        rows = [(compare(p, q).divergence, p.argmax() == q.argmax()) for p, q in zip(base, own, strict=True)]
        divergences, same_top = (np.array(column) for column in zip(*rows, strict=True))
        return cls.of(divergences, same_top)


@dataclass(frozen=True)
class Divergence(Distance):
    """The distance of a model from a base on a text, and what each of them makes of the text.

    rms_probability_difference:  of the probabilities that the two give to the token that follows.
    ln_ratio:                    ln(perplexity / base_perplexity). Its error is far smaller than theirs: where the text
                                 is hard, it is so for both.
    tokens_per_second:           of all tokens of the windows, each counted once, scoring included.
    """

    rms_probability_difference: float
    perplexity: float
    perplexity_error: float
    base_perplexity: float
    base_perplexity_error: float
    ln_ratio: float
    ln_ratio_error: float
    n_windows: int
    n_ctx: int
    n_scored: int
    seconds: float
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def divergence(
    model: Model,
    base: Model,
    token_ids: Sequence[int],
    n_ctx: int = DEFAULT_WINDOW,
    n_windows: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """How far `model` is from `base` on the windows that `perplexity` goes through.

    token_ids:  the whole text, as `tokenize(text, add_special=True)` of the base gives it.
    progress:   is called with (windows done, windows in all, mean divergence so far or, at first, None).

    Raises UsageError for different vocabularies and for a text that is too short, ContextOverflowError for windows
    longer than a model's context.
    """
    check_same_vocabulary(model, base)
    started = time.perf_counter()
    parts = windows(base.tokenizer, token_ids, n_ctx, n_windows)
    table: list[tuple[float, bool, float, float]] = []  # divergence, same top, NLL by base and model
    for done, window in enumerate(parts):
        if progress:
            progress(done, len(parts), float(np.mean([row[0] for row in table])) if table else None)
        foreseen = window[first_scored(n_ctx) + 1 :]
        for token, p, q in zip(foreseen, scored_rows(base, window), scored_rows(model, window), strict=True):
            found = compare(p, q)
            same_top = bool(p.argmax() == q.argmax())
            table.append(
                (found.divergence, same_top, found.base_sum - float(p[token]), found.own_sum - float(q[token]))
            )
    seconds = time.perf_counter() - started
    divergences, same_tops, base_nlls, nlls = (np.array(column) for column in zip(*table, strict=True))
    distance = Distance.of(divergences, same_tops)
    if progress:
        progress(len(parts), len(parts), distance.mean)
    (own, own_error), (others, others_error) = perplexity_of(nlls), perplexity_of(base_nlls)
    return Divergence(
        **asdict(distance),
        rms_probability_difference=sqrt(np.square(np.exp(-nlls) - np.exp(-base_nlls)).mean()),
        perplexity=own,
        perplexity_error=own_error,
        base_perplexity=others,
        base_perplexity_error=others_error,
        ln_ratio=float((nlls - base_nlls).mean()),
        ln_ratio_error=standard_error(nlls - base_nlls),
        n_windows=len(parts),
        n_ctx=n_ctx,
        n_scored=len(table),
        seconds=seconds,
        tokens_per_second=len(parts) * n_ctx / seconds,
    )


def check_same_vocabulary(model: Model, base: Model) -> None:
    """Raises UsageError when a token id means something else to one of two models."""
    own, others = (list(m.metadata["tokenizer.ggml.tokens"].as_bytes()) for m in (model, base))
    if len(own) != len(others):
        raise UsageError(
            f"{model.path.name} has {len(own)} tokens and {base.path.name} {len(others)}; "
            f"models can be compared only when their vocabularies are the same"
        )
    for token_id, (a, b) in enumerate(zip(own, others, strict=True)):
        if a != b:
            raise UsageError(
                f"token {token_id} is {a.decode(errors='replace')!r:.40} to {model.path.name} and "
                f"{b.decode(errors='replace')!r:.40} to {base.path.name}; "
                f"models can be compared only when their vocabularies are the same"
            )
