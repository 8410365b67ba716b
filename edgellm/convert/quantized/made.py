"""Tensors whose rows are made when somebody asks for them, out of what a quantized checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS, BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Make = Callable[["Rows"], NDArray[np.uint8]]

Rows: TypeAlias = "slice | NDArray[np.int32]"


class MadeTensor(Tensor):
    """Matrices that nobody holds: `make(rows)` gives uint8 [n, row_bytes], and `raw` all of it, each time anew.

    Of several matrices, rows are counted from one to the next.
    """

    def __init__(self, name: str, shape: tuple[int, ...], block_format: BlockFormat, make: Make) -> None:
        for field, value in (("name", name), ("shape", shape), ("format", block_format), ("_make", make)):
            object.__setattr__(self, field, value)

    @property
    def raw(self) -> NDArray[np.uint8]:  # type: ignore[override]
        return self.some_rows(slice(None))

    @property
    def n_bytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])

    def some_rows(self, rows: Rows) -> NDArray[np.uint8]:
        make: Make = self._make  # type: ignore[attr-defined]
        return make(rows)


def of_floats(
    name: str, shape: tuple[int, int], type_name: str, rows_of: Callable[[Rows], NDArray[np.float32]]
) -> MadeTensor:
    """A matrix of a float type whose rows are computed, float32 [n, n_in]."""
    floats = FORMATS[type_name]
    return MadeTensor(name, shape, floats, lambda rows: np.asarray(floats.quantize(rows_of(rows)), np.uint8))
