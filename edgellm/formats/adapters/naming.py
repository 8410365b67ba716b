"""How the checkpoint of a model calls the tensors that GGUF has, and how it holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stack(NamedTuple):
    """Where the base model of an adapter has the matrices of a layer's experts, which GGUF stacks.

    split:       the name of each expert's module, with a place for its number; None where no checkpoint has them so.
    parameters:  names of the parameter that holds all of them: that of the model in memory, then the checkpoint's.
    n_in:        inputs of a matrix.
    part:        of its outputs, the part-th of n_parts.
    is_across:   the parameter is [n_experts, n_in, n_out], and parts of outputs alternate.
    """

    n_experts: int
    n_in: int
    split: str | None
    parameters: tuple[str, ...]
    part: int = 0
    n_parts: int = 1
    is_across: bool = False

    def rows(self, n_out: int) -> slice:
        """Which of all outputs of the parameter are those of this part."""
        size = n_out // self.n_parts
        return (
            slice(self.part, None, self.n_parts) if self.is_across else slice(self.part * size, (self.part + 1) * size)
        )


@dataclass(frozen=True)
class Naming:
    """Names and orders of rows, both ways. `edgellm.arch.huggingface` makes them for a family.

    names:    GGUF's name of a tensor -> the checkpoint's, in the model's order: all that the family can have.
    orders:   int32 [n_rows] for tensors whose rows GGUF has in another order: row i is the checkpoint's row orders[i].
    offsets:  what GGUF adds to the checkpoint's numbers.
    stacks:   where the experts are, by GGUF's names, in the order in which their modules have them.
    """

    names: Mapping[str, str]
    orders: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)

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
