"""x W in float32, for weights of any format: gradients on their way back through y = W x.

Some rows of weights are dequantized into a tile, a piece of columns at a time, and meet a piece of the tokens; sums
wait in the output for the next rows. A row's weights lie one behind the other, so nothing is transposed: lanes hold
columns. A sum goes through the rows in their order, one fused multiply-add after the other, from 0: so any number of
tokens and threads gives the same bits.
"""

from __future__ import annotations

from edgellm.kernels.gradient_records import (
    LINEAR_TRANSPOSED,
    TRANSPOSED_ROWS,
    TRANSPOSED_TILE_BYTES,
    TRANSPOSED_TOKENS,
)
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.dequantize import dequantize_row
from edgellm.kernels.ops.products import add_products, rows_of
from edgellm.kernels.records import F32_TILE_COLS, ROW_ALIGN
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import F32, Value, Vocabulary, staged
from edgellm.quants.floats import FloatFormat


def unpack_tile(
    v: Vocabulary, fmt, weights: Value, row_bytes: Value, n_left: Value, n_cols: Value, tile: Value
) -> None:
    """n_cols columns of TRANSPOSED_ROWS rows, or of the n_left that there are, to the tile; then zeros to ROW_ALIGN.

    The same columns of the next tile are prefetched: places so far apart come slowly from memory otherwise.
    """
    n_lines = n_cols / fmt.block_size * fmt.block_bytes / LINE + 1

    def row(i: Value) -> None:
        to = tile + i * TRANSPOSED_TILE_BYTES
        if isinstance(fmt, FloatFormat):  # a tile has room for this register in any case; blocks leave nothing over
            v.store(to + n_cols / ROW_ALIGN * (ROW_ALIGN * 4), v.constant(0.0, F32, ROW_ALIGN))
        dequantize_row(v, fmt, weights + i * row_bytes, n_cols, lambda column, some: v.store(to + column * 4, some))
        ahead = weights + v.minimum(i + TRANSPOSED_ROWS, n_left - 1) * row_bytes
        v.repeat(n_lines, lambda line: v.prefetch(ahead + line * LINE))

    v.repeat(v.minimum(n_left, TRANSPOSED_ROWS), row)


def build_linear_transposed(isa, fmt):
    """W [n_rows, n_cols] by rows [n_tokens, n_rows].

    A chunk is F32_TILE_COLS columns of TRANSPOSED_TOKENS tokens: the pieces of columns of the first tokens come
    first, then those of the next.
    """
    op_at = record_viewer(LINEAR_TRANSPOSED)
    block_size, block_bytes = fmt.block_size, fmt.block_bytes

    @staged(isa, "void", *["i64"] * 5)
    def unpack(v, *args):
        unpack_tile(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 9)
    def by_tokens(v, tile, n_rows, n_cols, is_first, x, x_bytes, out, out_bytes, n_tokens):
        tile_bytes = v.like(TRANSPOSED_TILE_BYTES, tile)
        out, x, tile = (rows_of(v, *matrix) for matrix in ((out, out_bytes), (x, x_bytes), (tile, tile_bytes)))
        n_padded = (n_cols + (ROW_ALIGN - 1)) / ROW_ALIGN * ROW_ALIGN
        add_products(v, out, x, tile, n_tokens, n_padded, n_rows, is_first)

    def linear_transposed(record, chunk, thread):
        op = op_at(record)
        tile = op.scratch + thread * op.scratch_bytes
        n_pieces = (op.n_cols + F32_TILE_COLS - 1) // F32_TILE_COLS
        column, token = chunk % n_pieces * F32_TILE_COLS, chunk // n_pieces * TRANSPOSED_TOKENS
        n_cols = min(F32_TILE_COLS, op.n_cols - column)
        n_tokens = min(TRANSPOSED_TOKENS, op.batch.n_tokens - token)
        weights = op.weights + column // block_size * block_bytes
        x = op.x + token * op.x_stride * 4
        out = op.out + (token * op.out_stride + column) * 4
        for row in range(0, op.n_rows, TRANSPOSED_ROWS):
            n_left = op.n_rows - row
            n_rows, is_first = min(TRANSPOSED_ROWS, n_left), 1 if row == 0 else 0
            unpack(weights + row * op.row_bytes, op.row_bytes, n_left, n_cols, tile)
            by_tokens(tile, n_rows, n_cols, is_first, x + row * 4, op.x_stride * 4, out, op.out_stride * 4, n_tokens)

    return linear_transposed
