"""Rows of a batch that are those of a table instead, and the gradient of that table: learnt tokens and their like.

`places` says for every token which row of the table it takes: i for the row i - 1, and 0 for none.
"""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import REPLACE_ROWS, REPLACED_ROWS_SUM, ROW_ALIGN
from edgellm.kernels.staged import F32, staged


def build_replace_rows(isa):
    """out = x, but for rows of the table; without a table these are 0. out may be x."""
    op_at = record_viewer(REPLACE_ROWS)
    load_f32 = memory(isa).load_f32

    @staged(isa, "void", "i64", "i64", "i64")
    def copy(v, x, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes)))

    @staged(isa, "void", "i64", "i64")
    def clear(v, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.constant(0.0, F32, lanes)))

    def replace_rows(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            place = int(load_f32(op.places + token * 4))
            if place == 0:
                if op.out != op.x:
                    copy(op.x + at, op.out + at, op.n_cols)
            elif op.table != 0:
                copy(op.table + (place - 1) * op.n_cols * 4, op.out + at, op.n_cols)
            else:
                clear(op.out + at, op.n_cols)

    return replace_rows


def build_replaced_rows_sum(isa):
    """sums[place - 1] += dy for every row with a place, tokens in their order, for sums [n_rows, n_cols]."""
    op_at = record_viewer(REPLACED_ROWS_SUM)
    load_f32 = memory(isa).load_f32

    @staged(isa, "void", "i64", "i64", "i64")
    def add_row(v, sums, dy, n):
        v.elements(
            n,
            ROW_ALIGN,
            lambda i, lanes: v.store(sums + i * 4, v.f32(sums + i * 4, lanes) + v.f32(dy + i * 4, lanes)),
        )

    def replaced_rows_sum(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        for token in range(op.batch.n_tokens):
            place = int(load_f32(op.places + token * 4))
            if place != 0:
                sums = op.sums + ((place - 1) * op.n_cols + first) * 4
                add_row(sums, op.dy + (token * op.stride + first) * 4, n_cols)

    return replaced_rows_sum
