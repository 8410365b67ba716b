"""Tensors whose rows are made when somebody asks for them, out of what a quantized checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS, BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Rows: TypeAlias = "slice | NDArray[np.int32]"


@dataclass(frozen=True, eq=False)
class MadeTensor(Tensor):
    """A tensor that nobody holds as a whole: `raw` is empty, and `make(rows)` gives uint8 [n, row_bytes]."""

    make: Callable[[Rows], NDArray[np.uint8]]

    @property
    def n_bytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])

    def some_rows(self, rows: Rows) -> NDArray[np.uint8]:
        return self.make(rows)

    def dequantize(self) -> Floats:
        return self.format.dequantize(self.make(slice(None))).reshape(self.shape)


def made(name: str, shape: tuple[int, int], block_format: BlockFormat, make: Callable[[Rows], Any]) -> MadeTensor:
    """A matrix whose rows `make` gives as bytes of a format."""
    return MadeTensor(name, shape, block_format, np.empty((0, block_format.row_bytes(shape[1])), np.uint8), make)


def of_floats(name: str, shape: tuple[int, int], type_name: str, rows_of: Callable[[Rows], Floats]) -> MadeTensor:
    """A matrix of a float type whose rows are computed, float32 [n, n_in]."""
    floats = FORMATS[type_name]
    return made(name, shape, floats, lambda rows: floats.quantize(rows_of(rows)))
