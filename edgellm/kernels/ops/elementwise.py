"""Sums and copies of whole rows. Rows are padded to ROW_ALIGN, so they consist of whole registers."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ADD, ROW_ALIGN, SELECT_ROWS
from edgellm.kernels.staged import staged


def build_add(isa):
    """out = a + b; out may be one of them."""
    op_at = record_viewer(ADD)

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def add_elements(v, a, b, out, n):
        v.elements(
            n,
            ROW_ALIGN,
            lambda i, lanes: v.store(out + i * 4, v.f32(a + i * 4, lanes) + v.f32(b + i * 4, lanes)),
        )

    def add(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        add_elements(op.a + at, op.b + at, op.out + at, n_tokens * op.stride)

    return add


def build_select_rows(isa):
    """out[i] = x[rows[i]]: the tokens whose logits are wanted."""
    op_at = record_viewer(SELECT_ROWS)
    load_i64 = memory(isa).load_i64

    @staged(isa, "void", "i64", "i64", "i64")
    def copy(v, x, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes)))

    def select_rows(record, chunk, thread):
        op = op_at(record)
        copy(
            op.x + load_i64(op.batch.rows + chunk * 8) * op.stride * 4,
            op.out + chunk * op.stride * 4,
            op.stride,
        )

    return select_rows
