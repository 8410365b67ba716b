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
from edgellm.quants.floats import FloatFormat

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

    importance:  float32 [n_cols] by the target's name of a tensor.
    """

    def __init__(self, importance: Mapping[str, NDArray[Any]]) -> None:
        self._importance = importance
        self._fit = CompiledFit(KernelStore(isa.choose()))

    def encode(self, part: Part, rows: slice, block_format: BlockFormat) -> Bytes:
        """The target's bytes of these rows: uint8 [n_rows, row_bytes].

        Raises FormatError when they hold NaN or infinity.
        """
        raw = part.raw(rows)
        if block_format is part.tensor.format and not part.offset:
            if isinstance(block_format, FloatFormat):
                _refuse_what_is_not_finite(block_format.dequantize(raw))
            return raw
        x = part.tensor.format.dequantize(raw)
        if part.offset:
            x += np.float32(part.offset)
        _refuse_what_is_not_finite(x)
        return block_format.quantize(x, self._importance.get(part.name), self._fit)


def _refuse_what_is_not_finite(x: NDArray[np.float32]) -> None:
    if not np.isfinite(x).all():
        what = "NaN" if np.isnan(x).any() else "infinity"
        raise FormatError(f"its weights hold {what}; the checkpoint is damaged, or its training failed")
