"""Squares of activations, added up column by column: what importance matrices are made of."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import ROW_ALIGN, SUM_SQUARES
from edgellm.kernels.staged import F64, Value, Vocabulary, staged


def _add_squares(v: Vocabulary, x: Value, row_bytes: Value, n_tokens: Value, sums: Value) -> None:
    """ROW_ALIGN columns, token after token, so that no division into batches changes a sum. Each square is exact."""

    def body(token: Value, total: Value) -> list[Value]:
        part = v.f32(x + token * row_bytes, ROW_ALIGN).to(F64)
        return [total + part * part]

    (total,) = v.loop(n_tokens, [v.load(sums, F64, ROW_ALIGN)], body)
    v.store(sums, total)


def build_sum_squares(isa):
    """Chunk c is the c-th `chunk_cols` columns, of all tokens: a sum belongs to one thread."""
    op_at = record_viewer(SUM_SQUARES)
    add_squares = staged(isa, "void", "i64", "i64", "i64", "i64")(_add_squares)

    def sum_squares(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_cols, op.stride)
        for column in range(chunk * op.chunk_cols, end, ROW_ALIGN):
            add_squares(op.x + column * 4, op.stride * 4, op.batch.n_tokens, op.sums + column * 8)

    return sum_squares
