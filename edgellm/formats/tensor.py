"""What every file format gives: weights as the file holds them, nothing copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.quants import FORMATS, BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as the file holds it.

    shape:   in NumPy order, outermost first: the matrix of a linear layer is (n_out, n_in).
    format:  how its bytes mean weights.
    raw:     its bytes, read-only: uint8[n_rows, row_bytes] or, up to one dimension, uint8[row_bytes].
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    raw: NDArray[np.uint8]

    @classmethod
    def of(cls, name: str, x: NDArray[np.float32]) -> Tensor:
        """An array as a tensor of type F32; where it lies in one piece already, it is the same memory."""
        raw = np.ascontiguousarray(x, "<f4").view(np.uint8)
        return cls(name, x.shape, FORMATS["F32"], raw.reshape(-1, x.shape[-1] * 4) if x.ndim > 1 else raw)

    @property
    def address(self) -> int:
        """Where the bytes lie in memory; valid as long as the file is open or `raw` is alive."""
        return self.raw.__array_interface__["data"][0]

    @property
    def n_bytes(self) -> int:
        return self.raw.nbytes

    def some_rows(self, rows: slice | NDArray[np.int32]) -> NDArray[np.uint8]:
        """uint8 [n, row_bytes]: the bytes of some rows of a matrix."""
        return self.raw.reshape(-1, self.format.row_bytes(self.shape[-1]))[rows]

    def dequantize(self) -> NDArray[np.float32]:
        """The weights as a new float32 array of `shape`."""
        return self.format.dequantize(self.raw).reshape(self.shape)
