"""Where checkpoints have the matrices that GGUF stacks."""

from __future__ import annotations

from typing import NamedTuple


class Experts(NamedTuple):
    """Where a checkpoint has the matrices of a layer's experts, which GGUF stacks: [n_experts, n_out, n_in].

    split:      the name of each by itself, with places for the layer and the expert; None where no checkpoint has it.
    stacked:    the name of all in one tensor.
    part:       of its rows, taken of every expert, the part-th of n_parts.
    is_across:  floats are [n_experts, n_in, n_out] instead (blocks of quantized weights always lie along the inputs),
                and the parts alternate.
    """

    split: str | None
    stacked: str
    part: int = 0
    n_parts: int = 1
    is_across: bool = False


class KeysOrValues(NamedTuple):
    """The matrix of a checkpoint that makes keys and values of what latent attention keeps, head by head.

    GGUF has both by themselves: of values [n_heads, value_dim, kv_rank], of keys across [n_heads, kv_rank, n_plain].
    """

    name: str
    values: bool
