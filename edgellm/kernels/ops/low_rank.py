"""Low-rank steps beside a linear (LoRA; Hu et al., 2021), for matrices of few rows in float32 or float16.

A result is one sum in one order, whatever else is in the batch: so a token has the same bits alone and among others.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.low_rank_records import ADD_SCALED, NARROW, WIDEN
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import row_addresses
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.staged import F32, Value, Vocabulary, staged
from edgellm.quants.floats import FloatFormat

ROWS = 8  # of weights that meet an input together; it divides ROW_ALIGN


def _dot_rows(
    v: Vocabulary,
    fmt: FloatFormat,
    weight: Value,
    n_cols: Value,
    first: Value,
    last: Value,
    x: Value,
    scale: Value,
    out: Value,
) -> None:
    """out = scale * W x for rows first to first + ROWS - 1, none beyond last."""
    lanes = v.isa.lanes
    size = fmt.block_bytes
    rows = row_addresses(v, weight, n_cols * size, first, last, ROWS)
    n_whole = n_cols / lanes * lanes

    def add_products(column: Value, n: int, totals: tuple[Value, ...]) -> list[Value]:
        part = v.f32(x + column * 4, n)
        return [v.fma(fmt.load(v, row + column * size, n), part, t) for row, t in zip(rows, totals, strict=True)]

    totals = v.loop(
        n_cols / lanes, [v.constant(0.0, F32, lanes)] * ROWS, lambda i, *t: add_products(i * lanes, lanes, t)
    )
    sums = v.loop(n_cols - n_whole, [total.sum() for total in totals], lambda i, *t: add_products(n_whole + i, 1, t))
    v.store(out + first * 4, v.vector_of(sums) * scale)


def build_narrow(isa, fmt):
    """out = scale * W x, for W [rank, n_cols] -> [rank]."""
    op_at = record_viewer(NARROW)
    load_f32 = memory(isa).load_f32

    @staged(isa, "void", *["i64"] * 5, "f32", "i64")
    def dot_rows(v, *args):
        _dot_rows(v, fmt, *args)

    @staged(isa, "void", "i64")
    def clear_rows(v, out):
        v.store(out, v.constant(0.0, F32, ROWS))

    def narrow(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for row in range(0, op.rank, ROWS):
            for token in range(chunk * op.chunk_tokens, end):
                out = op.out + token * op.out_stride * 4
                if op.scales == 0 or load_f32(op.scales + token * 4) != 0:
                    x = op.x + token * op.stride * 4
                    dot_rows(op.weight, op.n_cols, row, op.rank - 1, x, np.float32(op.scale), out)
                else:
                    clear_rows(out + row * 4)

    return narrow


def _add_rows(
    v: Vocabulary,
    fmt: FloatFormat,
    weight: Value,
    n_cols: Value,
    first: Value,
    last: Value,
    h: Value,
    scale: Value,
    y: Value,
    out: Value,
) -> None:
    """out = y + scale * W^T h for rows first to first + ROWS - 1 of W, none beyond last."""
    size = fmt.block_bytes
    rows = row_addresses(v, weight, n_cols * size, first, last, ROWS)
    zero = v.constant(0.0, F32)
    factors = [v.select(v.greater(first + r, last), zero, v.f32(h + (first + r) * 4)) for r in range(ROWS)]

    def add_parts(column: Value, n: int) -> None:
        total = v.constant(0.0, F32, n)
        for row, factor in zip(rows, factors, strict=True):
            total = v.fma(fmt.load(v, row + column * size, n), factor, total)
        v.store(out + column * 4, v.fma(total, scale, v.f32(y + column * 4, n)))

    v.elements(n_cols, v.isa.lanes, add_parts)


def build_widen(isa, fmt):
    """out = y + scale * W^T h, for W [rank, n_cols] and h [rank]; y as it is where the scale is 0."""
    op_at = record_viewer(WIDEN)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32

    @staged(isa, "void", *["i64"] * 5, "f32", "i64", "i64")
    def add_rows(v, *args):
        _add_rows(v, fmt, *args)

    def widen(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for row in range(0, op.rank, ROWS):
            for token in range(chunk * op.chunk_tokens, end):
                scale = np.float32(op.scale)
                if op.scales != 0:
                    scale *= load_f32(op.scales + token * 4)
                at = token * op.stride * 4
                y = op.y if row == 0 else op.out  # further rows add to what the first ones made
                if scale != 0:
                    h = op.h + token * op.h_stride * 4
                    add_rows(op.weight, op.n_cols, row, op.rank - 1, h, scale, y + at, op.out + at)
                elif y != op.out:
                    copy(y + at, op.out + at, op.n_cols)

    return widen


def build_add_scaled(isa):
    """out = y + scale * x; y as it is where the scale is 0, whatever x is there."""
    op_at = record_viewer(ADD_SCALED)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32

    @staged(isa, "void", "i64", "i64", "f32", "i64", "i64")
    def add(v, y, x, scale, out, n):
        def part(i: Value, lanes: int) -> None:
            v.store(out + i * 4, v.fma(v.f32(x + i * 4, lanes), scale, v.f32(y + i * 4, lanes)))

        v.elements(n, v.isa.lanes, part)

    def add_scaled(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            scale = np.float32(op.scale)
            if op.scales != 0:
                scale *= load_f32(op.scales + token * 4)
            at = token * op.stride * 4
            if scale != 0:
                add(op.y + at, op.x + token * op.x_stride * 4, scale, op.out + at, op.n_cols)
            elif op.y != op.out:
                copy(op.y + at, op.out + at, op.n_cols)

    return add_scaled
