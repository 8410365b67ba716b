"""Sums and copies of rows. Rows are padded to ROW_ALIGN, so whole ones consist of whole registers."""

from __future__ import annotations

from edgellm.kernels.encoder_records import ADD_SEGMENT
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ADD, ADD_BIAS, CHOOSE, COPY_HEADS, RESIZE_HEADS, SELECT_ROWS


def build_add(isa):
    """out = a + b; out may be one of them."""
    op_at, add_elements = record_viewer(ADD), memory(isa).add_f32

    def add(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        add_elements(op.a + at, op.b + at, op.out + at, n_tokens * op.stride)

    return add


def build_add_bias(isa):
    """out = x + bias; out may be x."""
    op_at, add_elements = record_viewer(ADD_BIAS), memory(isa).add_f32

    def add_bias(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            add_elements(op.x + at, op.bias, op.out + at, op.n_cols)

    return add_bias


def build_add_segment(isa):
    """out = x + the row of a table that each token's segment says; out may be x."""
    op_at, load_i32, add_elements = record_viewer(ADD_SEGMENT), memory(isa).load_i32, memory(isa).add_f32

    def add_segment(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            add_elements(
                op.x + at, op.table + load_i32(op.segments + token * 4) * op.n_cols * 4, op.out + at, op.n_cols
            )

    return add_segment


def build_choose(isa):
    """The rows of `other` where they count something, and those of x where they do not; out may be x."""
    op_at = record_viewer(CHOOSE)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32

    def choose(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            if load_f32(op.scales + token * 4) != 0:
                copy(op.other + at, op.out + at, op.stride)
            elif op.out != op.x:
                copy(op.x + at, op.out + at, op.stride)

    return choose


def build_resize_heads(isa):
    """Every head cut off at `out_head_dim`, or filled up to it with zeros."""
    op_at = record_viewer(RESIZE_HEADS)
    copy, clear = memory(isa).copy_f32, memory(isa).clear_f32

    def resize_heads(record, chunk, thread):
        op = op_at(record)
        n_kept = min(op.head_dim, op.out_head_dim)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for head in range(op.n_heads):
                out = op.out + (token * op.out_stride + head * op.out_head_dim) * 4
                copy(op.x + (token * op.stride + head * op.head_dim) * 4, out, n_kept)
                clear(out + n_kept * 4, op.out_head_dim - n_kept)

    return resize_heads


def build_copy_heads(isa):
    """Some neighbouring numbers of every head, to a place in every head of another row."""
    op_at, copy = record_viewer(COPY_HEADS), memory(isa).copy_f32

    def copy_heads(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for head in range(op.n_heads):
                x = op.x + (token * op.x_stride + head * op.x_step + op.x_start) * 4
                copy(x, op.out + (token * op.out_stride + head * op.out_step + op.out_start) * 4, op.size)

    return copy_heads


def build_select_rows(isa):
    """out[i] = x[rows[i]]: the tokens whose logits are wanted."""
    op_at = record_viewer(SELECT_ROWS)
    load_i64, copy = memory(isa).load_i64, memory(isa).copy_f32

    def select_rows(record, chunk, thread):
        op = op_at(record)
        copy(
            op.x + load_i64(op.batch.rows + chunk * 8) * op.stride * 4,
            op.out + chunk * op.stride * 4,
            op.stride,
        )

    return select_rows
