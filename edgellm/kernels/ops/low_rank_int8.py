"""Low-rank steps beside a linear of quantized weights, in integers: A and B as `quants.low_rank` packs them.

A x is made of the int8 of x that the linear reads too, group by group as there. h = A x is rounded to int16, so B h is
made of products of integers as well, and its two factors are not less exact than A and B.

A number is one sum in one order, whatever else is in the batch: so a token has the same bits alone and among others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from edgellm.kernels.low_rank_records import LARGEST_NARROWED, LEAST_NARROWED, NARROW_INT8, NARROWED_AT, WIDEN_INT8
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.quantize import build_quantize
from edgellm.kernels.ops.rounding import round_row
from edgellm.kernels.ops.tile_products import as_multiplied, correction, is_corrected
from edgellm.kernels.records import QUANTIZE, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I16, I32, Value, Vocabulary, staged
from edgellm.quants.low_rank import BYTES, GROUP, PAIR, PIECE_ROWS, WORD

WORDS = GROUP // WORD  # of a group of x
PAIR_BYTES = PAIR * TILE_ROWS  # of a tile of B
PIECE_BYTES = PIECE_ROWS * TILE_ROWS


def _dot_piece(
    v: Vocabulary, weight: Value, n_groups: Value, q: Value, d: Value, sums: Value, scale: Value, out: Value
) -> None:
    """Eight rows of A by a token: two words of each row in a register."""
    scales = weight + n_groups * (GROUP * PIECE_ROWS)

    def body(g: Value, total: Value) -> list[Value]:
        x, words = v.load(q + g * GROUP, I32, WORDS), weight + g * (GROUP * PIECE_ROWS)
        products = v.byte_sum(v.constant(0, I32, TILE_ROWS), BYTES)
        for k in range(0, WORDS, 2):
            two = v.shuffle(x, x, [k] * PIECE_ROWS + [k + 1] * PIECE_ROWS).bitcast(I8)
            rows = v.load(words + k * (WORD * PIECE_ROWS), I8, 2 * WORD * PIECE_ROWS)
            products.add(as_multiplied(v, BYTES, rows), two)
        first, second = v.halves(products.total())
        dots = first + second
        if is_corrected(v, BYTES):
            dots = dots + correction(v, sums + g * 4, PIECE_ROWS)
        return [v.fma(dots.to_f32(), v.half(scales + g * (2 * PIECE_ROWS), PIECE_ROWS) * v.f32(d + g * 4), total)]

    (total,) = v.loop(n_groups, [v.constant(0.0, F32, PIECE_ROWS)], body)
    v.store(out, total * scale)


def _round_h(v: Vocabulary, row: Value, n_pieces: Value) -> None:
    """The float32 of a row of h become int16 in the same place, with a scale before them."""
    numbers = row + NARROWED_AT
    round_row(v, numbers, n_pieces, PIECE_ROWS, LARGEST_NARROWED, LEAST_NARROWED, out=numbers, scale_at=row)


def _narrower(isa):
    """narrow_tokens(op, first, last): h = scale * A x for A [rank, n_cols] and some tokens."""
    load_f32 = memory(isa).load_f32
    dot_piece = staged(isa, "void", *["i64"] * 5, "f32", "i64")(_dot_piece)
    round_h = staged(isa, "void", "i64", "i64")(_round_h)

    @njit(error_model="numpy")
    def narrow_token(op, token):
        n_groups, row = op.n_cols // GROUP, op.out + token * op.out_stride * 4
        at = token * n_groups * 4
        for piece in range(op.n_pieces):
            dot_piece(
                op.weight + piece * op.piece_bytes,
                n_groups,
                op.xq.q + token * op.n_cols,
                op.xq.d + at,
                op.xq.correction128_32 + at,
                np.float32(op.scale),
                row + NARROWED_AT + piece * PIECE_ROWS * 4,
            )
        round_h(row, op.n_pieces)

    @njit(error_model="numpy")
    def narrow_tokens(op, first, last):
        for token in range(first, last):
            if op.scales == 0 or load_f32(op.scales + token * 4) != 0:
                narrow_token(op, token)

    return narrow_tokens


def build_narrow_int8(isa):
    """h = scale * A x for A [rank, n_cols]. A chunk is some tokens."""
    op_at, narrow_tokens = record_viewer(NARROW_INT8), _narrower(isa)

    def narrow(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        narrow_tokens(op, first, min(first + op.chunk_tokens, op.batch.n_tokens))

    return narrow


def build_quantize_adapted(isa):
    """x as int8, and h of all matrices A beside the linears that read it. A chunk is some tokens."""
    op_at, narrow_at = record_viewer(QUANTIZE), record_viewer(NARROW_INT8)
    quantize, narrow_tokens = njit(error_model="numpy")(build_quantize(isa)), _narrower(isa)

    def quantize_adapted(record, chunk, thread):
        quantize(record, chunk, thread)
        op = op_at(record)
        first = chunk * op.chunk_tokens
        last = min(first + op.chunk_tokens, op.batch.n_tokens)
        beside = op.beside
        while beside != 0:
            narrow = narrow_at(beside)
            narrow_tokens(narrow, first, last)
            beside = narrow.next

    return quantize_adapted


def widened(
    v: Vocabulary,
    tile: Value,
    n_pieces: Value,
    h: Value,
    factor: Value,
    y: Value,
    before_piece: Callable[[Value], None] = lambda piece: None,
) -> Value:
    """y + factor * B h, for the 16 rows of B at `tile` and the int16 of the row of h there.

    factor:  the scale of h is a part of it. before_piece: what is done beside, before each piece.
    """
    lanes = min(v.isa.lanes, TILE_ROWS)
    numbers = h + NARROWED_AT

    def add_piece(i: Value, *sums: Value) -> list[Value]:
        columns = [tile + i * PIECE_BYTES + at * lanes * PAIR for at in range(len(sums))]
        pairs = numbers + i * (2 * PIECE_ROWS)
        before_piece(i)
        for k in range(PIECE_ROWS // PAIR):
            pair = v.load(pairs + k * (2 * PAIR), I16, PAIR)
            some = [v.load(at + k * PAIR_BYTES, I8, PAIR * lanes).sext(I16) for at in columns]
            sums = tuple(v.dot_pairs(so_far, part, pair) for so_far, part in zip(sums, some, strict=True))
        return list(sums)

    # Most adapters have a rank that takes a piece or two, so the loop is one that the CPU foresees.
    dots = v.concat(*v.loop(n_pieces, [v.constant(0, I32, lanes)] * (TILE_ROWS // lanes), add_piece)).to_f32()
    return v.fma(dots, v.half(tile + n_pieces * PIECE_BYTES, TILE_ROWS) * factor, y)


def build_widen_int8(isa, small=False):
    """out = y + scale * B h for B [n_cols, rank]; y as it is where the scale is 0."""
    op_at = record_viewer(WIDEN_INT8)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32

    @staged(isa, "void", *["i64"] * 4, "f32", *["i64"] * 3)
    def add_tiles(v, tile, tile_bytes, n_pieces, h, factor, y, out, n_tiles):
        def add_tile(i: Value) -> None:
            at = i * (4 * TILE_ROWS)
            v.store(out + at, widened(v, tile + i * tile_bytes, n_pieces, h, factor, v.f32(y + at, TILE_ROWS)))

        v.repeat(n_tiles, add_tile)

    def widen(record, chunk, thread):
        op = op_at(record)
        chunk_cols = op.small_chunk_cols if small else op.chunk_cols
        n_parts = (op.n_cols + chunk_cols - 1) // chunk_cols
        column = chunk % n_parts * chunk_cols
        n_cols = min(chunk_cols, op.n_cols - column)
        first = chunk // n_parts * op.chunk_tokens
        for token in range(first, min(first + op.chunk_tokens, op.batch.n_tokens)):
            h, scale = op.h + token * op.h_stride * 4, np.float32(op.scale)
            if op.scales != 0:
                scale *= load_f32(op.scales + token * 4)
            at = (token * op.stride + column) * 4
            if scale != 0:
                add_tiles(
                    op.weight + column // TILE_ROWS * op.tile_bytes,
                    op.tile_bytes,
                    op.n_pieces,
                    h,
                    load_f32(h) * scale,
                    op.y + at,
                    op.out + at,
                    (n_cols + TILE_ROWS - 1) // TILE_ROWS,
                )
            elif op.y != op.out:
                copy(op.y + at, op.out + at, n_cols)

    return widen
