"""Low-rank steps beside a linear (LoRA; Hu et al., 2021), for matrices of few rows in float32 or float16.

A result is one sum in one order, whatever else is in the batch: so a token has the same bits alone and among others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgellm.kernels.low_rank_records import ADD_SCALED, NARROW, WIDEN
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import row_addresses
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged
from edgellm.quants.floats import FloatFormat

ROWS = 8  # of weights that meet an input together; it divides ROW_ALIGN
FEW_ROWS = 4  # the same where no more are left of a chunk


def _dot_rows(
    v: Vocabulary,
    fmt: FloatFormat,
    n_rows: int,
    weight: Value,
    n_cols: Value,
    first: Value,
    last: Value,
    x: Value,
    scale: Value,
    out: Value,
) -> None:
    """out = scale * W x for rows first to first + n_rows - 1, none beyond last."""
    lanes = v.isa.lanes
    size = fmt.block_bytes
    rows = row_addresses(v, weight, n_cols * size, first, last, n_rows)
    n_whole = n_cols / lanes * lanes

    def add_products(column: Value, n: int, totals: tuple[Value, ...]) -> list[Value]:
        part = v.f32(x + column * 4, n)
        return [v.fma(fmt.load(v, row + column * size, n), part, t) for row, t in zip(rows, totals, strict=True)]

    totals = v.loop(
        n_cols / lanes, [v.constant(0.0, F32, lanes)] * n_rows, lambda i, *t: add_products(i * lanes, lanes, t)
    )
    sums = v.loop(n_cols - n_whole, [total.sum() for total in totals], lambda i, *t: add_products(n_whole + i, 1, t))
    v.store(out + first * 4, v.vector_of(sums) * scale)


def _rows_dotter(isa, fmt):
    """dot_rows(op, token, first, end): those rows of the narrow matrix by a token."""
    load_f32, clear = memory(isa).load_f32, memory(isa).clear_f32

    def of(n_rows):
        @staged(isa, "void", *["i64"] * 5, "f32", "i64")
        def dot(v, *args):
            _dot_rows(v, fmt, n_rows, *args)

        return dot

    dot_many, dot_few = of(ROWS), of(FEW_ROWS)

    @njit(error_model="numpy")
    def dot_rows(op, token, first, end):
        out = op.out + token * op.out_stride * 4
        if op.scales != 0 and load_f32(op.scales + token * 4) == 0:
            clear(out + first * 4, end - first)
        else:
            x = op.x + token * op.stride * 4
            if end - first > FEW_ROWS:
                dot_many(op.weight, op.n_cols, first, op.rank - 1, x, np.float32(op.scale), out)
            else:
                dot_few(op.weight, op.n_cols, first, op.rank - 1, x, np.float32(op.scale), out)

    return dot_rows


def _asker(isa):
    """ask(address, n_lines): have memory bring those lines."""

    @staged(isa, "void", "i64", "i64")
    def ask(v, address, n_lines):
        v.repeat(n_lines, lambda i: v.prefetch(address + i * LINE))

    return ask


def build_narrow(isa, fmt, small=False):
    """out = scale * W x, for W [rank, n_cols] -> [rank]. A chunk is some tokens, or in a small batch rows of W."""
    op_at = record_viewer(NARROW)
    size = fmt.block_bytes
    dot_rows, ask = _rows_dotter(isa, fmt), _asker(isa)

    def narrow(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        end = min(first + op.chunk_tokens, op.batch.n_tokens)
        for row in range(0, op.rank, ROWS):
            for token in range(first, end):
                dot_rows(op, token, row, min(row + ROWS, op.rank))

    def narrow_small(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_rank
        end = min(first + op.chunk_rank, op.rank)
        row_bytes = op.n_cols * size
        ask(op.weight + first * row_bytes, ((end - first) * row_bytes + LINE - 1) // LINE)
        for row in range(first, end, ROWS):
            for token in range(op.batch.n_tokens):
                dot_rows(op, token, row, min(row + ROWS, end))

    return narrow_small if small else narrow


def _add_rows(
    v: Vocabulary,
    fmt: FloatFormat,
    weight: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    h: Value,
    h_bytes: Value,
    scale: Value,
    y: Value,
    out: Value,
    out_bytes: Value,
    n_cols: Value,
    n_tokens: Value,
) -> None:
    """out = y + scale * W^T h for rows first to first + ROWS - 1 of W, none beyond last, and n_cols of its columns.

    A register of each row stays where it is while all tokens meet it, for a chunk may have but 16 columns.
    """
    size = fmt.block_bytes
    rows = row_addresses(v, weight, row_bytes, first, last, ROWS)
    none, all_bits = v.constant(0, I32), v.constant(-1, I32)
    masks = [v.select(v.greater(first + r, last), none, all_bits) for r in range(ROWS)]

    def add_columns(column: Value, n: int) -> None:
        parts = [fmt.load(v, row + column * size, n) for row in rows]
        lane_masks = [v.like(mask, v.constant(0, I32, n)) for mask in masks]

        def add_token(t: Value) -> None:
            total, h_of_token, at = v.constant(0.0, F32, n), h + h_bytes * t + first * 4, out_bytes * t + column * 4
            for r, (part, mask) in enumerate(zip(parts, lane_masks, strict=True)):
                factor = v.like(v.load(h_of_token + r * 4, I32), mask) & mask
                total = v.fma(part, factor.bitcast(F32), total)
            v.store(out + at, v.fma(total, scale, v.f32(y + at, n)))

        v.repeat(n_tokens, add_token)

    v.elements(n_cols, v.isa.lanes, add_columns)


def build_widen(isa, fmt, small=False):
    """out = y + scale * W^T h, for W [rank, n_cols] and h [rank]; y as it is where the scale is 0."""
    op_at = record_viewer(WIDEN)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32
    size = fmt.block_bytes

    @staged(isa, "void", *["i64"] * 6, "f32", *["i64"] * 5)
    def add_rows(v, *args):
        _add_rows(v, fmt, *args)

    def widen(record, chunk, thread):
        op = op_at(record)
        chunk_cols = op.small_chunk_cols if small else op.chunk_cols
        n_parts = (op.n_cols + chunk_cols - 1) // chunk_cols
        column = chunk % n_parts * chunk_cols
        n_cols = min(chunk_cols, op.n_cols - column)
        first = chunk // n_parts * op.chunk_tokens
        end = min(first + op.chunk_tokens, op.batch.n_tokens)
        weight, row_bytes, last = op.weight + column * size, op.n_cols * size, op.rank - 1
        h_bytes, out_bytes = op.h_stride * 4, op.stride * 4
        # All tokens at once, but one by one where they have scales of their own.
        n_pieces, piece = (1, end - first) if op.scales == 0 else (end - first, 1)
        for row in range(0, op.rank, ROWS):
            y = op.y if row == 0 else op.out  # further rows add to what the first ones made
            for token in range(first, first + n_pieces):
                scale = np.float32(op.scale)
                if op.scales != 0:
                    scale *= load_f32(op.scales + token * 4)
                h, at = op.h + token * h_bytes, token * out_bytes + column * 4
                if scale != 0:
                    add_rows(
                        weight, row_bytes, row, last, h, h_bytes, scale, y + at, op.out + at, out_bytes, n_cols, piece
                    )
                elif y != op.out:
                    for same in range(piece):
                        copy(y + at + same * out_bytes, op.out + at + same * out_bytes, n_cols)

    return widen


def build_ask_for_widen(isa, fmt):
    """Ask memory for what `widen` will read for a chunk of a small batch."""
    op_at = record_viewer(WIDEN)
    size = fmt.block_bytes
    ask = _asker(isa)

    def ask_for_widen(record, chunk, thread):
        op = op_at(record)
        column = chunk * op.small_chunk_cols
        n_bytes = min(op.small_chunk_cols, op.n_cols - column) * size
        for row in range(op.rank):
            ask(op.weight + (row * op.n_cols + column) * size, (n_bytes + LINE - 1) // LINE)

    return ask_for_widen


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
