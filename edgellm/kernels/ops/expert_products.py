"""What goes backwards through the matrices of experts: x W for each pair, and sums of outer products for each expert.

As `linear_transposed.py` and `outer_sum.py` have it for one matrix; the pairs of an expert come one after the other as
`sort_experts` has ordered them, some at a time, their rows gathered.
"""

from __future__ import annotations

from numba import njit

from edgellm.kernels.expert_gradient_records import EXPERT_OUTER_SUM, EXPERTS_TRANSPOSED, PAIRS
from edgellm.kernels.gradient_records import (
    OUTER_COLS,
    OUTER_ROWS,
    OUTER_TOKENS,
    TRANSPOSED_ROWS,
    TRANSPOSED_TILE_BYTES,
)
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear_transposed import unpack_tile
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.products import add_products, columns_of, rows_of
from edgellm.kernels.records import F32_TILE_COLS, ROW_ALIGN
from edgellm.kernels.staged import staged


def build_experts_transposed(isa, fmt):
    """A chunk is F32_TILE_COLS columns of one expert: W [n_rows, n_cols] by the rows of its pairs."""
    op_at, words = record_viewer(EXPERTS_TRANSPOSED), memory(isa)
    load, copy = words.load_i64, words.copy_f32
    block_size, block_bytes = fmt.block_size, fmt.block_bytes

    @staged(isa, "void", *["i64"] * 5)
    def unpack(v, *args):
        unpack_tile(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 7)
    def multiply(v, tile, n_rows, n_cols, is_first, x, out, n_pairs):
        row, column = v.like(4 * TRANSPOSED_ROWS, x), v.like(TRANSPOSED_TILE_BYTES, x)
        n_padded = (n_cols + (ROW_ALIGN - 1)) / ROW_ALIGN * ROW_ALIGN
        sums, left, right = rows_of(v, out, column), rows_of(v, x, row), rows_of(v, tile, column)
        add_products(v, sums, left, right, n_pairs, n_padded, n_rows, is_first)

    def experts_transposed(record, chunk, thread):
        op = op_at(record)
        n_pieces = (op.n_cols + F32_TILE_COLS - 1) // F32_TILE_COLS
        expert, column = chunk // n_pieces, chunk % n_pieces * F32_TILE_COLS
        n_cols = min(F32_TILE_COLS, op.n_cols - column)
        tile = op.scratch + thread * op.scratch_bytes
        out = tile + TRANSPOSED_ROWS * TRANSPOSED_TILE_BYTES
        x = out + PAIRS * TRANSPOSED_TILE_BYTES
        weights = op.weights + expert * op.expert_bytes + column // block_size * block_bytes
        end = load(op.ends + expert * 8)
        begin = load(op.ends + (expert - 1) * 8) if expert > 0 else 0
        for first in range(begin, end, PAIRS):
            n_pairs = min(PAIRS, end - first)
            for row in range(0, op.n_rows, TRANSPOSED_ROWS):
                n_left = op.n_rows - row
                n_rows = min(TRANSPOSED_ROWS, n_left)
                for i in range(n_pairs):
                    pair = load(op.order + (first + i) * 8)
                    at = pair // op.n_used * op.x_stride + pair % op.n_used * op.n_rows + row
                    copy(op.x + at * 4, x + i * (4 * TRANSPOSED_ROWS), n_rows)
                unpack(weights + row * op.row_bytes, op.row_bytes, n_left, n_cols, tile)
                multiply(tile, n_rows, n_cols, 1 if row == 0 else 0, x, out, n_pairs)
            for i in range(n_pairs):
                pair = load(op.order + (first + i) * 8)
                at = pair // op.n_used * op.out_stride + pair % op.n_used * op.n_cols + column
                copy(out + i * TRANSPOSED_TILE_BYTES, op.out + at * 4, n_cols)

    return experts_transposed


def build_expert_outer_sum(isa):
    """G [n_rows, n_cols] of each expert += the outer products of its pairs' a and b.

    A chunk is a tile of OUTER_ROWS rows and OUTER_COLS columns of one expert, added up in scratch memory: rows of G
    have no padding. One without pairs is not touched.
    """
    op_at, words = record_viewer(EXPERT_OUTER_SUM), memory(isa)
    load, copy, clear = words.load_i64, words.copy_f32, words.clear_f32

    @staged(isa, "void", *["i64"] * 6)
    def add_pairs(v, g, a, b, n_rows, n_cols, n_pairs):
        row, column = v.like(4 * OUTER_COLS, a), v.like(4 * OUTER_ROWS, a)
        of_a, of_b, of_g = columns_of(v, a, column), rows_of(v, b, row), rows_of(v, g, row)
        add_products(v, of_g, of_a, of_b, n_rows, n_cols, n_pairs, v.like(0, n_pairs))

    @njit(error_model="numpy")
    def gather(op, pair, i, row, n_rows, column, n_cols, a, b):
        token, slot = pair // op.n_used, pair % op.n_used
        copy(op.a + (token * op.a_stride + slot * op.n_rows + row) * 4, a + i * (4 * OUTER_ROWS), n_rows)
        own = slot * op.n_cols if op.b_parts == op.n_used else 0
        copy(op.b + (token * op.b_stride + own + column) * 4, b + i * (4 * OUTER_COLS), n_cols)

    def expert_outer_sum(record, chunk, thread):
        op = op_at(record)
        n_across = (op.n_cols + OUTER_COLS - 1) // OUTER_COLS
        n_tiles = (op.n_rows + OUTER_ROWS - 1) // OUTER_ROWS * n_across
        expert, tile = chunk // n_tiles, chunk % n_tiles
        end = load(op.ends + expert * 8)
        begin = load(op.ends + (expert - 1) * 8) if expert > 0 else 0
        if begin == end:
            return
        row, column = tile // n_across * OUTER_ROWS, tile % n_across * OUTER_COLS
        n_rows, n_cols = min(OUTER_ROWS, op.n_rows - row), min(OUTER_COLS, op.n_cols - column)
        n_padded = (n_cols + ROW_ALIGN - 1) // ROW_ALIGN * ROW_ALIGN
        sums = op.scratch + thread * op.scratch_bytes
        a = sums + 4 * OUTER_ROWS * OUTER_COLS
        b = a + 4 * OUTER_TOKENS * OUTER_ROWS
        clear(sums, OUTER_ROWS * OUTER_COLS)
        clear(b, OUTER_TOKENS * OUTER_COLS)
        g = op.g + ((expert * op.n_rows + row) * op.n_cols + column) * 4
        for i in range(n_rows):
            copy(g + i * op.n_cols * 4, sums + i * (4 * OUTER_COLS), n_cols)
        for first in range(begin, end, OUTER_TOKENS):
            n_pairs = min(OUTER_TOKENS, end - first)
            for i in range(n_pairs):
                gather(op, load(op.order + (first + i) * 8), i, row, n_rows, column, n_cols, a, b)
            add_pairs(sums, a, b, n_rows, n_padded, n_pairs)
        for i in range(n_rows):
            copy(sums + i * (4 * OUTER_COLS), g + i * op.n_cols * 4, n_cols)

    return expert_outer_sum
