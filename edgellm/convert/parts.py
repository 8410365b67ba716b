"""A tensor on its way from one file into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Transposed(Tensor):
    """A matrix of floats as [n_out, n_in] that the checkpoint holds as [n_in, n_out], as GPT-2's do.

    Nothing is kept of it: whoever asks for its bytes has them turned then.
    """

    def __init__(self, tensor: Tensor) -> None:
        for name, value in (("name", tensor.name), ("shape", tensor.shape[::-1]), ("format", tensor.format)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_source", tensor)

    @property
    def raw(self) -> NDArray[np.uint8]:  # type: ignore[override]
        source: Tensor = self._source  # type: ignore[attr-defined]
        n_in, n_out = source.shape
        numbers = source.raw.reshape(n_in, n_out, source.format.block_bytes)
        return np.ascontiguousarray(numbers.swapaxes(0, 1)).reshape(n_out, -1)


@dataclass(frozen=True, eq=False)
class Part:
    """What the target holds under `name`: row i is the source's row row_order[i], plus offset.

    name:       in the target.
    tensor:     as the source holds it.
    row_order:  int32 [n_rows], for Llama's queries and keys, whose rotary pairs GGUF has as neighbours; None
                keeps the order. In a tensor of one dimension, every number is a row.
    offset:     for Gemma's norms, of which checkpoints hold what they differ from one.
    read:       gives the source's bytes of some rows where they do not lie one behind the other in it.
    change:     makes other weights of some rows, float32 [n_rows, n_cols]: what an adapter adds, say.
    """

    name: str
    tensor: Tensor
    row_order: NDArray[np.int32] | None = None
    offset: float = 0.0
    change: Callable[[slice, NDArray[Any]], NDArray[Any]] | None = None
    read: Callable[[slice], NDArray[np.uint8]] | None = None

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
        if self.read is not None:
            return self.read(slice(*rows.indices(self.n_rows)[:2]))
        wanted = rows if self.row_order is None else self.row_order[rows]
        if len(self.tensor.shape) < 2:  # every number may be a row
            return self.tensor.raw.reshape(self.n_rows, -1)[wanted]
        return self.tensor.some_rows(wanted)

    def piece_bytes(self, rows: slice) -> int:
        return (rows.stop - rows.start) * self.tensor.n_bytes // self.n_rows

    def sample(self, step: int) -> Part:
        """Every step-th row of each matrix, as a part of its own."""
        by_matrix = self.raw(slice(None)).reshape(self.n_matrices, self.n_rows // self.n_matrices, -1)
        sampled = np.ascontiguousarray(by_matrix[:, ::step])
        n_matrices, n_rows, row_bytes = sampled.shape
        shape = (n_matrices, n_rows, self.n_cols) if n_matrices > 1 else (n_rows, self.n_cols)
        tensor = Tensor(self.tensor.name, shape, self.tensor.format, sampled.reshape(-1, row_bytes))
        return Part(self.name, tensor, offset=self.offset)


def with_columns(part: Part, order: NDArray[np.int32]) -> Part:
    """The same part with its columns in another order: column i is the source's column order[i].

    Raises UnsupportedError where the order would tear blocks of quantized weights apart.
    """
    tensor, size = part.tensor, part.tensor.format.block_size
    if len(tensor.shape) != 2 or len(order) != tensor.shape[1]:
        return part  # which is told to be misshapen where its shape is checked
    blocks = order.reshape(-1, size)
    if len(order) % size or (blocks != blocks[:, :1] + np.arange(size)).any() or (blocks[:, 0] % size).any():
        raise UnsupportedError(f"tensor {tensor.name!r} is quantized in blocks of {size} that reach across its heads")
    firsts = blocks[:, 0] // size

    def read(rows: slice) -> NDArray[np.uint8]:
        raw = tensor.some_rows(rows if part.row_order is None else part.row_order[rows])
        return np.ascontiguousarray(raw.reshape(len(raw), len(firsts), -1)[:, firsts]).reshape(len(raw), -1)

    return replace(part, read=read, row_order=None)
