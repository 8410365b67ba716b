"""A tensor on its way from one file into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Part:
    """What the target holds under `name`: row i is the source's row row_order[i], plus offset.

    name:       in the target.
    tensor:     as the source holds it.
    row_order:  int32 [n_rows], for Llama's queries and keys, whose rotary pairs GGUF has as neighbours; None
                keeps the order. In a tensor of one dimension, every number is a row.
    offset:     for Gemma's norms, of which checkpoints hold what they differ from one.
    change:     makes other weights of some rows, float32 [n_rows, n_cols]: what an adapter adds, say.
    """

    name: str
    tensor: Tensor
    row_order: NDArray[np.int32] | None = None
    offset: float = 0.0
    change: Callable[[slice, NDArray[Any]], NDArray[Any]] | None = None

    @property
    def n_cols(self) -> int:
        """Weights in a row."""
        if self.row_order is not None and len(self.tensor.shape) == 1:
            return 1
        return self.tensor.shape[-1] if self.tensor.shape else 1

    @property
    def n_rows(self) -> int:
        return prod(self.tensor.shape) // self.n_cols

    @property
    def n_matrices(self) -> int:
        """How many matrices are stacked: experts have one each."""
        return self.tensor.shape[0] if len(self.tensor.shape) == 3 else 1

    def raw(self, rows: slice) -> NDArray[np.uint8]:
        """The source's bytes of some rows of the target: uint8 [n, row_bytes]."""
        wanted = rows if self.row_order is None else self.row_order[rows]
        if len(self.tensor.shape) < 2:  # every number may be a row
            return self.tensor.raw.reshape(self.n_rows, -1)[wanted]
        return self.tensor.some_rows(wanted)

    def piece_bytes(self, rows: slice) -> int:
        return (rows.stop - rows.start) * self.tensor.n_bytes // self.n_rows

    def sample(self, step: int) -> Part:
        """Every step-th row, as a part of its own."""
        raw = np.ascontiguousarray(self.raw(slice(None))[::step])
        tensor = Tensor(self.tensor.name, (len(raw), self.n_cols), self.tensor.format, raw)
        return Part(self.name, tensor, offset=self.offset)
