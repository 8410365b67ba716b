"""Sums and copies of whole rows."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ADD, SELECT_ROWS


def build_add(isa):
    """out = a + b; out may be one of them."""
    op_at = record_viewer(ADD)
    m = memory(isa)
    load, store = m.load_f32, m.store_f32

    def add(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens) * op.stride
        for i in range(chunk * op.chunk_tokens * op.stride, end):
            store(op.out + i * 4, load(op.a + i * 4) + load(op.b + i * 4))

    return add


def build_select_rows(isa):
    """out[i] = x[rows[i]]: the tokens whose logits are wanted."""
    op_at = record_viewer(SELECT_ROWS)
    m = memory(isa)
    load, store, load_i64 = m.load_f32, m.store_f32, m.load_i64

    def select_rows(record, chunk, thread):
        op = op_at(record)
        x = op.x + load_i64(op.batch.rows + chunk * 8) * op.stride * 4
        out = op.out + chunk * op.stride * 4
        for i in range(op.stride):
            store(out + i * 4, load(x + i * 4))

    return select_rows
