"""y = W x + scale * B h for few tokens, with weights that lie as tiles: what `linear_tiles` and `widen_int8` make.

For one token, what B adds to 16 rows is added while their sums are in a register. The loop over a tile asks for weights
evenly, so memory brings them meanwhile; B's part of a tile, a few lines, is asked for two tiles before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgellm.kernels.low_rank_records import WIDEN_INT8
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import sums_reader
from edgellm.kernels.ops.linear_tiles import FIRST_LEVEL, NON_TEMPORAL, build_linear_tiles, multiply_few
from edgellm.kernels.ops.low_rank_int8 import PIECE_BYTES, build_widen_int8, widened
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.prefetching import prefetch_address
from edgellm.kernels.records import LINEAR, PREFETCHES, TILE_ROWS
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import Value, Vocabulary, staged

TILES_AHEAD = 2


def build_linear_tiles_adapted(isa, fmt):
    """W [n_rows, n_cols] by few tokens, and what the record at op.beside adds; a chunk is chunk_rows of both."""
    op_at, beside_at = record_viewer(LINEAR), record_viewer(WIDEN_INT8)
    per_block, sums_of, load_f32 = fmt.block_size, sums_reader(fmt), memory(isa).load_f32
    linear = njit(error_model="numpy")(build_linear_tiles(isa, fmt))
    widen = njit(error_model="numpy")(build_widen_int8(isa, small=True))

    def kernel_of(prefetch: str):
        @staged(isa, "void", *["i64"] * 12, "f32")
        def tile_by_one(v, *args):
            _multiply_one(v, fmt, prefetch, *args)

        return tile_by_one

    by_one, by_one_non_temporal, by_one_both_levels = (kernel_of(prefetch) for prefetch in PREFETCHES)

    @staged(isa, "void", "i64", "i64")
    def ask(v, address, n_bytes):
        v.repeat((n_bytes + (LINE - 1)) / LINE, lambda i: v.prefetch(address + i * LINE, level=1))

    @njit(error_model="numpy")
    def multiply_one(op, beside, factor, chunk, thread):
        n_blocks, n_rows = op.n_cols // per_block, op.n_rows
        q, d, sums, out, stride = op.xq.q, op.xq.d, sums_of(op), op.out, op.out_stride
        tile_bytes, n_pieces, h = beside.tile_bytes, beside.n_pieces, beside.h
        first = chunk * op.chunk_rows
        b = beside.weight + first // TILE_ROWS * tile_bytes
        ask(b, TILES_AHEAD * tile_bytes)
        for row in range(first, min(first + op.chunk_rows, n_rows), TILE_ROWS):
            tile, ahead = op.weights + row * op.row_bytes, prefetch_address(op, chunk, thread, row)
            y = out + row * 4
            if op.prefetch == NON_TEMPORAL:
                by_one_non_temporal(
                    tile, n_blocks, q, d, sums, y, stride, ahead,
                    b, tile_bytes, n_pieces, h, factor,
                )  # fmt: skip
            elif op.prefetch == FIRST_LEVEL:
                by_one(
                    tile, n_blocks, q, d, sums, y, stride, ahead,
                    b, tile_bytes, n_pieces, h, factor,
                )  # fmt: skip
            else:
                by_one_both_levels(
                    tile, n_blocks, q, d, sums, y, stride, ahead,
                    b, tile_bytes, n_pieces, h, factor,
                )  # fmt: skip
            b += tile_bytes

    def linear_tiles_adapted(record, chunk, thread):
        op = op_at(record)
        beside = beside_at(op.beside)
        scale = np.float32(beside.scale)
        if beside.scales != 0:
            scale *= load_f32(beside.scales)
        if op.batch.n_tokens == 1 and scale != 0:
            multiply_one(op, beside, load_f32(beside.h) * scale, chunk, thread)
        else:
            linear(record, chunk, thread)
            widen(op.beside, chunk, thread)

    return linear_tiles_adapted


def _multiply_one(
    v: Vocabulary,
    fmt,
    prefetch: str,
    tile: Value,
    n_blocks: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
    ahead: Value,
    b: Value,
    tile_bytes: Value,
    n_pieces: Value,
    h: Value,
    factor: Value,
) -> None:
    """A tile of weights by one token, and beside it the tile of B at b by its h."""
    b_ahead = b + tile_bytes * TILES_AHEAD

    def ask(i: Value) -> None:
        for line in range(0, PIECE_BYTES, LINE):
            v.prefetch(b_ahead + i * PIECE_BYTES + line, level=1)

    v.prefetch(b_ahead + n_pieces * PIECE_BYTES, level=1)  # the scales
    multiply_few(
        v, fmt, 1, 1, tile, n_blocks, q, d, sums, out, out_stride, ahead,
        prefetch=prefetch, finish=lambda totals: [widened(v, b, n_pieces, h, factor, totals[0], ask)],
    )  # fmt: skip
