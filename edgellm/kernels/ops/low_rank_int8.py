"""Low-rank steps beside a linear of quantized weights, in integers: A and B as `quants.low_rank` packs them.

A x is made of the int8 of x that the linear reads too, group by group as there. h = A x is rounded to two planes of
int8, which are about as exact as 16 bits, so B h is made of products of bytes as well.

A number is one sum in one order, whatever else is in the batch: so a token has the same bits alone and among others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.low_rank_records import NARROW_INT8, WIDEN_INT8
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.quantize import row_quantizer, sums_maker
from edgellm.kernels.ops.tile_products import as_multiplied, correction, is_corrected
from edgellm.kernels.records import PLANE_BITS, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged
from edgellm.quants.low_rank import BYTES, GROUP, PIECE_ROWS, WORD

N_PLANES = 2  # of h
WORDS = GROUP // WORD  # of a group
REGISTER = WORD * TILE_ROWS  # bytes: a word of 16 rows, or two words of 8


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
            products.add(as_multiplied(v, BYTES, v.load(words + k * (WORD * PIECE_ROWS), I8, REGISTER)), two)
        first, second = v.halves(products.total())
        dots = first + second
        if is_corrected(v, BYTES):
            dots = dots + correction(v, sums + g * 4, PIECE_ROWS)
        return [v.fma(dots.to_f32(), v.half(scales + g * (2 * PIECE_ROWS), PIECE_ROWS) * v.f32(d + g * 4), total)]

    (total,) = v.loop(n_groups, [v.constant(0.0, F32, PIECE_ROWS)], body)
    v.store(out, total * scale)


def build_narrow_int8(isa):
    """h = scale * A x for A [rank, n_cols], as float32 and in two planes of int8. A chunk is some tokens."""
    op_at = record_viewer(NARROW_INT8)
    load_f32, clear = memory(isa).load_f32, memory(isa).clear_f32
    dot_piece = staged(isa, "void", *["i64"] * 5, "f32", "i64")(_dot_piece)
    quantize_row, make_sums = row_quantizer(isa, N_PLANES), sums_maker(isa, sums_for(BYTES))

    @njit(error_model="numpy")
    def narrow_token(op, token):
        n_groups, out_groups = op.n_cols // GROUP, op.out_width // GROUP
        at, out = token * n_groups * 4, op.out + token * op.out_width * 4
        for piece in range(op.n_pieces):
            dot_piece(
                op.weight + piece * op.piece_bytes,
                n_groups,
                op.xq.q + token * op.n_cols,
                op.xq.d + at,
                op.xq.correction128_32 + at,
                np.float32(op.scale),
                out + piece * PIECE_ROWS * 4,
            )
        n_made = op.n_pieces * PIECE_ROWS
        clear(out + n_made * 4, op.out_width - n_made)
        to, at = op.to, token * out_groups * 4
        quantize_row(out, out_groups, to.q + token * op.out_width * N_PLANES, to.d + at, to.halves + at * 2)
        make_sums(to, token, out_groups)

    def narrow(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        for token in range(first, min(first + op.chunk_tokens, op.batch.n_tokens)):
            if op.scales == 0 or load_f32(op.scales + token * 4) != 0:
                narrow_token(op, token)

    return narrow


class Narrowed(NamedTuple):
    """h of a token: the words and groups of a row of B; where its bytes, scales and corrections are."""

    n_words: Value
    n_groups: Value
    q: Value
    d: Value
    sums: Value


def widened(v: Vocabulary, tile: Value, h: Narrowed, scale: Value, y: Value) -> Value:
    """y + scale * B h, for the 16 rows of B at `tile`."""
    scales, second_plane = tile + h.n_words * REGISTER, h.q + h.n_groups * GROUP

    def add_group(g: Value, total: Value) -> list[Value]:
        first, left = g * WORDS, h.n_words - g * WORDS

        def add_word(k: Value, *planes: Value) -> list[Value]:
            at = first + k
            word = as_multiplied(v, BYTES, v.load(tile + at * REGISTER, I8, REGISTER))
            results = []
            for so_far, plane in zip(planes, (h.q, second_plane), strict=True):
                products = v.byte_sum(so_far, BYTES)
                products.add(word, v.splat(v.u32(plane + at * WORD), TILE_ROWS).bitcast(I8))
                results.append(products.total())
            return results

        zero = v.constant(0, I32, TILE_ROWS)
        start = correction(v, h.sums + g * 4, TILE_ROWS) if is_corrected(v, BYTES) else zero
        n = v.select(v.greater(left, v.like(WORDS, left)), v.like(WORDS, left), left)
        coarse, fine = v.loop(n, [zero, start], add_word)
        dots = ((coarse << PLANE_BITS) + fine).to_f32()
        return [v.fma(dots, v.half(scales + g * (2 * TILE_ROWS), TILE_ROWS) * (v.f32(h.d + g * 4) * scale), total)]

    (total,) = v.loop(h.n_groups, [y], add_group)
    return total


def build_widen_int8(isa, small=False):
    """out = y + scale * B h for B [n_cols, rank]; y as it is where the scale is 0."""
    op_at = record_viewer(WIDEN_INT8)
    load_f32, copy = memory(isa).load_f32, memory(isa).copy_f32

    @staged(isa, "void", *["i64"] * 7, "f32", *["i64"] * 3)
    def add_tiles(v, tile, tile_bytes, n_words, n_groups, q, d, sums, scale, y, out, n_tiles):
        h = Narrowed(n_words, n_groups, q, d, sums)

        def add_tile(i: Value) -> None:
            at = i * (4 * TILE_ROWS)
            v.store(out + at, widened(v, tile + i * tile_bytes, h, scale, v.f32(y + at, TILE_ROWS)))

        v.repeat(n_tiles, add_tile)

    def widen(record, chunk, thread):
        op = op_at(record)
        chunk_cols = op.small_chunk_cols if small else op.chunk_cols
        n_parts = (op.n_cols + chunk_cols - 1) // chunk_cols
        column = chunk % n_parts * chunk_cols
        n_cols = min(chunk_cols, op.n_cols - column)
        first = chunk // n_parts * op.chunk_tokens
        for token in range(first, min(first + op.chunk_tokens, op.batch.n_tokens)):
            scale = np.float32(op.scale)
            if op.scales != 0:
                scale *= load_f32(op.scales + token * 4)
            at, of_h = (token * op.stride + column) * 4, token * op.n_groups
            if scale != 0:
                add_tiles(
                    op.weight + column // TILE_ROWS * op.tile_bytes,
                    op.tile_bytes,
                    op.n_words,
                    op.n_groups,
                    op.h.q + of_h * GROUP * N_PLANES,
                    op.h.d + of_h * 4,
                    op.h.correction128_32 + of_h * 4,
                    scale,
                    op.y + at,
                    op.out + at,
                    (n_cols + TILE_ROWS - 1) // TILE_ROWS,
                )
            elif op.y != op.out:
                copy(op.y + at, op.out + at, n_cols)

    return widen
