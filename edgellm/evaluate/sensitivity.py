"""How much of what a model knows hangs on each of its matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.engine import Model
from edgellm.errors import UsageError
from edgellm.evaluate.scores import Row, compare, scored_rows
from edgellm.evaluate.windows import windows

MAX_BYTES = 1 << 28  # of the base's logits, which are kept
DEFAULT_WINDOW = 256


class Sensitivity:
    """Compares a model with itself, one of its matrices changed.

    model:      mostly the original in F16 or F32; a quantized one measures its own rounding of activations along.
    token_ids:  a text, of which the first windows of n_ctx tokens are read; what the first half of each foresees is
                not scored. One window tells which matrices matter; more of them take as many times as long.
    """

    def __init__(self, model: Model, token_ids: Sequence[int], n_ctx: int = DEFAULT_WINDOW, n_windows: int = 1) -> None:
        self._model = model
        rows_per_window = n_ctx - 1 - n_ctx // 2
        affordable = MAX_BYTES // (4 * model.n_vocab * rows_per_window)
        if affordable < 1:
            raise UsageError(f"a window of {n_ctx} tokens has too many logits to keep; choose a shorter one")
        self._windows = windows(model.tokenizer, token_ids, n_ctx, min(n_windows, affordable))
        self._base: list[Row] = self._rows()

    @property
    def n_scored(self) -> int:
        """Tokens whose logits are compared."""
        return len(self._base)

    def of(self, name: str, raw: np.ndarray) -> float:
        """The mean divergence (in nats) when the matrix `name` is `raw`, uint8 in the format of the model's file."""
        with self._model.bind({name: raw}):
            changed = self._rows()
        return float(np.mean([compare(p, q).divergence for p, q in zip(self._base, changed, strict=True)]))

    def _rows(self) -> list[Row]:
        return [row for window in self._windows for row in scored_rows(self._model, window)]
