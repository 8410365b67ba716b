"""y = W x of several tokens on AMX (see `isa/amx.py`): tiles as in `ops/linear.py`, with the same bits.

One instruction makes the integer sums of a group for 16 rows and up to 16 tokens. They are exact, so only the float32
operations that put groups together decide about bits, and these are those of the other kernels in the same order.
They take most of the time now. Formats with a scale for every 16 weights have twice as many of them, and gain nothing.
"""

from __future__ import annotations

from numba import njit

from edgellm.kernels.isa import amx
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import ask_for_group, rows_unpacker, sums_reader
from edgellm.kernels.ops.linear_tiles import tile_unpacker
from edgellm.kernels.ops.prefetching import next_rows
from edgellm.kernels.ops.tile_products import GROUP, Inputs, UnpackedTile, add_scaled, correction, is_corrected
from edgellm.kernels.records import AMX_CONFIG_BYTES, AMX_SUMS_BYTES, LINEAR, PLANE_BITS, TILE_ROWS
from edgellm.kernels.staged import F32, I32, I64, Value, Vocabulary, staged

MOST, SOME = amx.ROWS, amx.ROWS // 2  # tokens at once
# Registers: two of sums and one of tokens for each of these numbers, and one of weights.
SUMS, TOKENS, WEIGHTS = {MOST: (0, 1), SOME: (2, 3)}, {MOST: 4, SOME: 5}, 6
SUM_BYTES = TILE_ROWS * 4  # of a token


def configure(v: Vocabulary, scratch: Value) -> None:
    """Registers for a group: weights as words of four columns below each other, tokens as rows of bytes."""
    sums, tokens = ([(rows, width) for rows in (MOST, SOME)] for width in (SUM_BYTES, GROUP))
    weights = (GROUP // 4, SUM_BYTES)
    amx.configure(v, scratch, [sums[0], sums[0], sums[1], sums[1], *tokens, weights, weights])


def multiply_tile(
    v: Vocabulary,
    fmt,
    n_planes: int,
    n_tokens: int,
    tile: Value,
    n_groups: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
    found: Value,
    ahead: Value,
    asks: Value,
) -> None:
    """The 16 rows of an unpacked tile by MOST or SOME tokens, with one register of 16 sums for each.

    found:  memory for the integer sums of a group. ahead, asks: as `linear.multiply_tiles` has them.
    """
    unpacked, inputs = UnpackedTile(v, fmt, tile, n_groups), Inputs(fmt, n_planes, n_groups, q, d, sums)
    plane_bytes, word_bytes = n_groups * GROUP, v.constant(SUM_BYTES, I64)
    places = [found + p * (MOST * SUM_BYTES) for p in range(n_planes)]

    def make_sums(g: Value) -> None:
        amx.load(v, WEIGHTS, tile + g * (TILE_ROWS * GROUP), word_bytes)
        for p, place in enumerate(places):
            register = SUMS[n_tokens][p]
            amx.zero(v, register)
            amx.load(v, TOKENS[n_tokens], q + plane_bytes * p + g * GROUP, plane_bytes * n_planes)
            amx.add_byte_products(v, register, TOKENS[n_tokens], WEIGHTS)
            amx.store(v, register, place, word_bytes)

    def dots_of(token: int) -> Value:
        first, *others = (v.load(place + token * SUM_BYTES, I32, TILE_ROWS) for place in places)
        for other in others:
            first = (first << PLANE_BITS) + other
        return first

    def body(g: Value, *totals: Value) -> list[Value]:
        ask_for_group(v, fmt, 1, g, ahead, asks)
        make_sums(g)
        (scale,), biases = unpacked.scales.of(g)
        results = []
        (places,) = inputs.places(v, g, n_tokens)
        for token, (total, place) in enumerate(zip(totals, places, strict=True)):
            dots = dots_of(token)
            if is_corrected(v, fmt):
                dots = dots + correction(v, place.sums, TILE_ROWS)
            result = add_scaled(v, total, dots, scale, place.d)
            results.append(v.fma(biases[0], v.f32(place.sums), result) if biases else result)
        return results

    totals = v.loop(n_groups, [v.constant(0.0, F32, TILE_ROWS)] * n_tokens, body)
    for token, total in enumerate(totals):
        v.store(out + out_stride * (4 * token), total)


def tile_kernel(isa, fmt, n_planes: int, unpack):
    """The kernel for several tokens; `unpack` as `rows_unpacker` makes it."""
    op_at, sums_of = record_viewer(LINEAR), sums_reader(fmt)

    @staged(isa, "void", "i64")
    def begin(v, scratch):
        configure(v, scratch)

    @staged(isa, "void")
    def end(v):
        amx.release(v)

    @staged(isa, "void", *["i64"] * 10)
    def by_most(v, *args):
        multiply_tile(v, fmt, n_planes, MOST, *args)

    @staged(isa, "void", *["i64"] * 10)
    def by_some(v, *args):
        multiply_tile(v, fmt, n_planes, SOME, *args)

    @njit(error_model="numpy")
    def multiply(op, tile, first, found, ahead):
        n_cols = op.n_cols
        token = 0
        while token < op.batch.n_tokens:
            q = op.xq.q + token * n_cols * n_planes
            d = op.xq.d + token * (n_cols // 32) * 4
            sums = sums_of(op) + token * (n_cols // 32) * 4
            out = op.out + (token * op.out_stride + first) * 4
            # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
            if op.batch.n_tokens - token > SOME:
                by_most(tile, n_cols // 32, q, d, sums, out, op.out_stride, found, ahead, 1 if token == 0 else 0)
                token += MOST
            else:
                by_some(tile, n_cols // 32, q, d, sums, out, op.out_stride, found, ahead, 1 if token == 0 else 0)
                token += SOME

    def linear_amx(record, chunk, thread):
        op = op_at(record)
        scratch = op.scratch + thread * op.scratch_bytes
        found = scratch + AMX_CONFIG_BYTES
        tile = found + AMX_SUMS_BYTES
        unpack(op, op.weights, chunk * 16, tile)
        begin(scratch)
        multiply(op, tile, chunk * 16, found, next_rows(op, chunk, thread, 16))
        end()

    return linear_amx


def build_linear_amx(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by several tokens; chunk c is the rows from 16 c on."""
    return tile_kernel(isa, fmt, n_planes, rows_unpacker(isa, fmt))


def build_linear_tiles_amx(isa, fmt, n_planes=1):
    """The same of weights that lie as tiles."""
    return tile_kernel(isa, fmt, n_planes, tile_unpacker(isa, fmt))
