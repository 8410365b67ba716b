"""How the checkpoint of a model calls the tensors that GGUF has, and how it holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Naming:
    """Names and orders of rows, both ways. `edgellm.arch.huggingface` makes them for a family.

    names:    GGUF's name of a tensor -> the checkpoint's, in the model's order: all that the family can have.
    orders:   int32 [n_rows] for tensors whose rows GGUF has in another order: row i is the checkpoint's row orders[i].
    offsets:  what GGUF adds to the checkpoint's numbers.
    """

    names: Mapping[str, str]
    orders: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> dict[str, str]:
        """GGUF's names by the checkpoint's."""
        return {theirs: name for name, theirs in self.names.items()}

    def rows_in(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows as the checkpoint has them, in GGUF's order."""
        return x if name not in self.orders else x[self.orders[name]]

    def rows_out(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows as GGUF has them, in the checkpoint's order."""
        return x if name not in self.orders else x[np.argsort(self.orders[name])]
