"""Factors of columns, and sums over all tokens of a batch: the gradients of vectors and of embeddings.

A sum adds to float32 that stands somewhere. It goes through the tokens in their order, and a chunk has some columns of
all tokens: so a sum belongs to one thread, and depends on the batch alone.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.gradient_records import COLUMN_PRODUCTS, COLUMN_SUMS, EMBED_BACKWARD
from edgellm.kernels.low_rank_records import MULTIPLY_COLUMNS
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged

LANES = ROW_ALIGN


def _add_rows(
    v: Vocabulary, inputs: list[Value], row_bytes: Value, n_tokens: Value, sums: Value, n_cols: Value
) -> None:
    """sums += what the inputs hold, multiplied, of all tokens; in float64, where products are exact."""

    def columns(i: Value, lanes: int) -> None:
        def add_row(token: Value, total: Value) -> list[Value]:
            at = token * row_bytes + i * 4
            first, *others = (v.f32(x + at, lanes).to(F64) for x in inputs)
            for other in others:
                first = first * other
            return [total + first]

        (total,) = v.loop(n_tokens, [v.f32(sums + i * 4, lanes).to(F64)], add_row)
        v.store(sums + i * 4, total.to(F32))

    v.elements(n_cols, LANES, columns)


def build_column_sums(isa):
    """sums += x, for sums [n_cols]."""
    op_at = record_viewer(COLUMN_SUMS)

    @staged(isa, "void", *["i64"] * 5)
    def add_rows(v, x, row_bytes, n_tokens, sums, n_cols):
        _add_rows(v, [x], row_bytes, n_tokens, sums, n_cols)

    def column_sums(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        add_rows(op.x + first * 4, op.stride * 4, op.batch.n_tokens, op.sums + first * 4, n_cols)

    return column_sums


def build_column_products(isa):
    """sums += a * b, for sums [n_cols]."""
    op_at = record_viewer(COLUMN_PRODUCTS)

    @staged(isa, "void", *["i64"] * 6)
    def add_rows(v, a, b, row_bytes, n_tokens, sums, n_cols):
        _add_rows(v, [a, b], row_bytes, n_tokens, sums, n_cols)

    def column_products(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        at = first * 4
        add_rows(op.a + at, op.b + at, op.stride * 4, op.batch.n_tokens, op.sums + at, n_cols)

    return column_products


def build_embed_backward(isa):
    """sums[id] += scale * dy for the id of every row, for sums [n_vocab, n_cols]."""
    op_at = record_viewer(EMBED_BACKWARD)
    load_i32 = memory(isa).load_i32

    @staged(isa, "void", "i64", "i64", "i64", "f32")
    def add_row(v, sums, dy, n_cols, scale):
        def add_part(i: Value, lanes: int) -> None:
            v.store(sums + i * 4, v.fma(v.f32(dy + i * 4, lanes), scale, v.f32(sums + i * 4, lanes)))

        v.elements(n_cols, LANES, add_part)

    def embed_backward(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        for token in range(op.batch.n_tokens):
            row = load_i32(op.ids + token * 4) * op.n_cols
            dy = op.dy + (token * op.stride + first) * 4
            add_row(op.sums + (row + first) * 4, dy, n_cols, np.float32(op.scale))

    return embed_backward


def build_multiply_columns(isa):
    """out = x * weight; out may be x."""
    op_at = record_viewer(MULTIPLY_COLUMNS)

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def multiply(v, x, weight, out, n):
        v.elements(
            n,
            LANES,
            lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * v.f32(weight + i * 4, lanes)),
        )

    def multiply_columns(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            multiply(op.x + at, op.weight, op.out + at, op.n_cols)

    return multiply_columns
