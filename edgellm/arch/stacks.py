"""Where checkpoints have the matrices that GGUF stacks, or takes apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgellm.arch.config import ModelConfig


class Experts(NamedTuple):
    """Where a checkpoint has the matrices of a layer's experts, which GGUF stacks: [n_experts, n_out, n_in].

    split:      the name of each by itself, with places for the layer and the expert; None where no checkpoint has it.
    stacked:    the name of all in one tensor.
    part:       of its rows, taken of every expert, the part-th of n_parts.
    is_across:  floats are [n_experts, n_in, n_out] instead (blocks of quantized weights always lie along the inputs),
                and the parts alternate.
    in_memory:  the name of all where transformers 5 has loaded them, if it is another one.
    """

    split: str | None
    stacked: str
    part: int = 0
    n_parts: int = 1
    is_across: bool = False
    in_memory: str | None = None


class KeysOrValues(NamedTuple):
    """The matrix of a checkpoint that makes keys and values of what latent attention keeps, head by head.

    GGUF has both by themselves: of values [n_heads, value_dim, kv_rank], of keys across [n_heads, kv_rank, n_plain].
    """

    name: str
    values: bool


class SomeRows(NamedTuple):
    """Rows of a checkpoint's matrix, which are one of GGUF's.

    rows:  int32 [n], which they are; all rows together are `n_all`.
    """

    name: str
    rows: Callable[[ModelConfig], NDArray[np.int32]]
    n_all: Callable[[ModelConfig], int]
