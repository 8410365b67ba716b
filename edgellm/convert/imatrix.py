"""Collecting an importance matrix: what a model's linear layers are given while it reads a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.engine import Model
from edgellm.errors import FileProblem
from edgellm.evaluate.windows import windows
from edgellm.formats.imatrix import Importance
from edgellm.params import DEFAULT_WINDOW


def collect_imatrix(
    model: Model,
    token_ids: Sequence[int],
    n_ctx: int = DEFAULT_WINDOW,
    n_windows: int | None = None,
    *,
    with_head: bool = False,
    datasets: Sequence[str] = (),
    progress: Callable[[int, int, None], None] | None = None,
) -> Importance:
    """Mean squares of every linear's inputs, over the windows of a text (see `windows`).

    model:      nobody else may use it meanwhile.
    token_ids:  the whole text, as `tokenize(text, add_special=True)` gives it.
    with_head:  also for the matrix that makes logits. It then has to make them all, which takes far longer; llama.cpp
                leaves it out as well unless asked.
    datasets:   names of the text, to be kept with the numbers.
    progress:   is called with (windows done, windows in all).

    Raises UsageError for a text that is too short, FileProblem for a model whose activations are not finite.
    """
    parts = windows(model.tokenizer, token_ids, n_ctx, n_windows)
    with model.square_sums() as square_sums:
        for done, window in enumerate(parts):
            if progress:
                progress(done, len(parts), None)
            for _ in model.logits_in_pieces(window, 0 if with_head else n_ctx):
                pass  # the squares are what matters
    if progress:
        progress(len(parts), len(parts), None)
    tensors, counts = {}, {}
    for name, sums in square_sums.items():
        if with_head or name.startswith("blk."):
            count = square_sums.counts.get(name, np.array([len(parts) * n_ctx]))
            tensors[name] = _mean(sums, count, f"{model.path}: what tensor {name!r} is given")
            counts[name] = count.astype(np.int64)
    return Importance(MappingProxyType(tensors), MappingProxyType(counts), len(parts), n_ctx, tuple(datasets))


def _mean(sums: NDArray[np.float64], count: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Of all rows, or of each expert's; one that no token had weighs all its inputs alike, as where files are read."""
    if sums.ndim == 2:
        mean = sums / np.maximum(count, 1)[:, None]
        mean[count == 0] = 1
    else:
        mean = sums / count
    if not (mean <= np.finfo(np.float32).max).all():  # nor are NaNs
        raise FileProblem(f"{what} is not finite; its weights may be damaged")
    return mean.astype(np.float32)
