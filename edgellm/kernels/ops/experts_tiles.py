"""The products of `experts.py` from tiles: each expert's rows are some tiles of their own (see `quants.tiles`)."""

from __future__ import annotations

from numba import njit

from edgellm.kernels.ops.experts import for_few, int8_for_many, pair_words
from edgellm.kernels.ops.linear import sums_reader
from edgellm.kernels.ops.linear_tiles import multiply_few, tile_unpacker
from edgellm.kernels.records import TILE_ROWS
from edgellm.kernels.staged import staged


def build_experts_tiles(isa, fmt):
    """Int8 inputs of few tokens. Of those that have the same expert, the first reads a tile from memory for all."""
    per_sum, per_block, sums_of = fmt.scale_group, fmt.block_size, sums_reader(fmt)
    input_of, _, _, _ = pair_words(isa)

    @staged(isa, "void", *["i64"] * 8)
    def by_one(v, *args):
        multiply_few(v, fmt, 1, 1, *args)

    @njit(error_model="numpy")
    def multiply(op, weights, row, pair, ahead, out, spare):
        at = input_of(op, pair) * op.n_cols
        by_one(
            weights + row * op.row_bytes,
            op.n_cols // per_block,
            op.xq.q + at,
            op.xq.d + at // 32 * 4,
            sums_of(op) + at // per_sum * 4,
            out,
            0,
            ahead,
        )

    return for_few(isa, TILE_ROWS, multiply)


def build_experts_tiles_prefill(isa, fmt):
    """Int8 inputs of many tokens."""
    return int8_for_many(isa, fmt, tile_unpacker(isa, fmt))
