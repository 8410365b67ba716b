"""G += scale times the sum over tokens of a outer b: the gradient of a matrix that rows went through.

A number of G is added to token after token, one fused multiply-add after the other, from what it was. So it depends on
the tokens of the batch and their order alone, and not on threads.
"""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.products import add_products, columns_of, rows_of
from edgellm.kernels.records import OUTER_COLS, OUTER_ROWS, OUTER_SUM, OUTER_TOKENS, ROW_ALIGN
from edgellm.kernels.staged import F32, staged


def build_outer_sum(isa):
    """G [n_rows, n_cols]; a chunk is a tile of OUTER_ROWS rows and OUTER_COLS columns: one row of tiles, then the next.

    Rows of G have no padding. Columns that do not fill ROW_ALIGN are therefore added up in scratch memory.
    """
    op_at = record_viewer(OUTER_SUM)

    @staged(isa, "void", *["i64"] * 9, "f64")
    def add_tokens(v, g, g_bytes, n_rows, n_cols, a, a_bytes, b, b_bytes, n_tokens, scale):
        of_a, of_b, of_g = columns_of(v, a, a_bytes), rows_of(v, b, b_bytes), rows_of(v, g, g_bytes)
        add_products(v, of_g, of_a, of_b, n_rows, n_cols, n_tokens, v.like(0, n_tokens), scale.to(F32))

    @staged(isa, "void", *["i64"] * 6)
    def copy(v, source, source_bytes, to, to_bytes, n_rows, n_cols):
        def row(i):
            v.repeat(n_cols, lambda k: v.store(to + i * to_bytes + k * 4, v.f32(source + i * source_bytes + k * 4)))

        v.repeat(n_rows, row)

    @staged(isa, "void", "i64", "i64")
    def clear(v, address, n_rows):
        v.repeat(n_rows, lambda i: v.store(address + i * (4 * ROW_ALIGN), v.constant(0.0, F32, ROW_ALIGN)))

    def outer_sum(record, chunk, thread):
        op = op_at(record)
        n_across = (op.n_cols + OUTER_COLS - 1) // OUTER_COLS
        row, column = chunk // n_across * OUTER_ROWS, chunk % n_across * OUTER_COLS
        n_rows, n_cols = min(OUTER_ROWS, op.n_rows - row), min(OUTER_COLS, op.n_cols - column)
        g, g_bytes = op.g + (row * op.g_stride + column) * 4, op.g_stride * 4
        a, a_bytes = op.a + row * 4, op.a_stride * 4
        b, b_bytes = op.b + column * 4, op.b_stride * 4
        n_tokens = op.batch.n_tokens
        n_whole = n_cols // ROW_ALIGN * ROW_ALIGN
        if n_whole > 0:
            for token in range(0, n_tokens, OUTER_TOKENS):
                n = min(OUTER_TOKENS, n_tokens - token)
                of_a, of_b = a + token * a_bytes, b + token * b_bytes
                add_tokens(g, g_bytes, n_rows, n_whole, of_a, a_bytes, of_b, b_bytes, n, op.scale)
        if n_whole < n_cols:
            rest, rest_bytes = op.scratch + thread * op.scratch_bytes, 4 * ROW_ALIGN
            g, b, n_rest = g + n_whole * 4, b + n_whole * 4, n_cols - n_whole
            clear(rest, n_rows)
            copy(g, g_bytes, rest, rest_bytes, n_rows, n_rest)
            add_tokens(rest, rest_bytes, n_rows, ROW_ALIGN, a, a_bytes, b, b_bytes, n_tokens, op.scale)
            copy(rest, rest_bytes, g, g_bytes, n_rows, n_rest)

    return outer_sum
