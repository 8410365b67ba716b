"""A few rows of a tensor, from the source's format into the target's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.parts import Part
from edgellm.errors import FormatError
from edgellm.kernels import isa
from edgellm.kernels.fit import CompiledFit
from edgellm.kernels.store import KernelStore
from edgellm.quants import BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.quants.base import Bytes


PIECE_WEIGHTS = 1 << 20  # converted at a time; 4 MB as floats


def rows_of(part: Part, n_weights: int) -> Iterator[slice]:
    """All rows of a part, in slices of about n_weights."""
    step = max(1, n_weights // part.n_cols)
    for start in range(0, part.n_rows, step):
        yield slice(start, min(start + step, part.n_rows))


class Encoder:
    """Turns rows into a format. `encode` may be called from several threads at once.

    importance:  float32 [n_cols], or [n_matrices, n_cols] for stacked experts, by the target's name of a tensor.
    """

    def __init__(self, importance: Mapping[str, NDArray[Any]]) -> None:
        self._importance = importance
        self._fit = CompiledFit(KernelStore(isa.choose()))

    def encode(self, part: Part, rows: slice, block_format: BlockFormat) -> Bytes:
        """The target's bytes of these rows: uint8 [n_rows, row_bytes].

        Raises FormatError naming the tensor when they hold NaN or infinity, or numbers that the format cannot.
        """
        try:
            return self._encode(part, rows, block_format)
        except FormatError as problem:
            raise FormatError(f"tensor {part.tensor.name!r}: {problem}") from None

    def _encode(self, part: Part, rows: slice, block_format: BlockFormat) -> Bytes:
        raw = part.raw(rows)
        x = part.tensor.format.dequantize(raw)
        check_finite(x)
        if block_format is part.tensor.format and not part.offset and part.change is None:
            return raw
        if part.offset:
            x += np.float32(part.offset)
        if part.change is not None:
            x = part.change(rows, x)
            check_finite(x)
        importance = self._importance.get(part.name)
        if importance is None or importance.size == part.n_cols:
            return block_format.quantize(x, None if importance is None else importance.reshape(-1), self._fit)
        by_matrix = importance.reshape(part.n_matrices, part.n_cols)
        matrix = np.arange(rows.start, rows.stop) // (part.n_rows // part.n_matrices)
        return np.concatenate(
            [block_format.quantize(x[matrix == m], by_matrix[m], self._fit) for m in np.unique(matrix)]
        )


def check_finite(x: NDArray[Any]) -> None:
    """Raise FormatError for weights that hold NaN or infinity."""
    if not np.isfinite(x).all():
        what = "NaN" if np.isnan(x).any() else "infinity"
        raise FormatError(f"its weights hold {what}; the file is damaged, or the training failed")
