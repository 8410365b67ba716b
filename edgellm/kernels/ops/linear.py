"""y = W x for every block format: what its kernels have in common, and the one for many tokens.

Those for few are in `linear_decode.py`, and in `linear_tiles.py` for weights that lie as tiles. Here weights are read
as the file holds them, and a tile of 16 rows is unpacked into scratch memory, once for all tokens.

Inputs are int8 in groups of 32 (see records.QUANTIZED), so that inside a group the sum is an exact integer; scales come
in afterwards as float32:

    sum(w * x) = sum over groups of  scale * d * sum(u * q)  +  bias * (d * sum(q))

For formats that store no minimum but have a zero point, the bias would be -scale * zero. So that part is an integer
too, -zero * sum(q), in which the sum of products begins (`group_sums`).

With two planes, an input is twice as long in int8: what rounding left over of the first is the second, in steps of a
256th (see records.QUANTIZED). Inside a group both sums are integers, so they are put together there, exactly, as one
of 16 bits would be: 256 * sum(u * q1) + sum(u * q2).

The sum over groups is made in one order, group after group, whichever kernel makes it: a lane holds a row,
never a part of one. So decode and prefill give the same bits, as do any number of threads and every
instruction set, and a text has the same logits in one batch or token by token.
"""

from __future__ import annotations

from functools import partial

from numba import njit

from edgellm.kernels.blocks import SETS, BlockReader, transpose_quarters
from edgellm.kernels.group_sums import sums_for
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.prefetching import next_rows, prefetch_part
from edgellm.kernels.ops.tile_products import (
    GROUP,
    Inputs,
    UnpackedTile,
    as_multiplied,
    meet_tokens,
    store_totals,
    unpacked_tiles,
)
from edgellm.kernels.records import LINEAR, TILE_ROWS
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged


def row_addresses(v: Vocabulary, weights: Value, row_bytes: Value, first: Value, last: Value, n: int) -> list[Value]:
    """Where n rows start, from `first` on; beyond the last row, the last again, whose results nobody reads."""
    return [weights + row_bytes * v.minimum(first + r, last) for r in range(n)]


def readers(v: Vocabulary, fmt, addresses: list[Value]) -> tuple[list[BlockReader], BlockReader]:
    """Of the blocks of some rows at the same place: those of each set, for weights, and of all rows, for scales."""
    size = fmt.block_bytes
    return [BlockReader(v, addresses[s::SETS], size) for s in range(SETS)], BlockReader(v, addresses, size)


def scales_by_row(v: Vocabulary, fmt, reader: BlockReader) -> tuple[list[Value], list[Value]]:
    """The scales of a block, each for all rows, and likewise the biases; no biases where there is a zero point."""
    n_rows = len(reader.addresses)

    def by_group(numbers: Value | None) -> list[Value]:
        return [] if numbers is None else [numbers[at : at + n_rows] for at in range(0, numbers.n, n_rows)]

    scales, biases = fmt.unpack_scales(v, reader)
    return by_group(scales), by_group(biases)


def sums_reader(fmt):
    """sums_of(op): where the numbers of each group are that weights of this format need (`group_sums`)."""
    field = sums_for(fmt).field

    @njit(error_model="numpy")
    def sums_of(op):
        return getattr(op.xq, field)

    return sums_of


def unpack_tile(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_groups: Value,
    tile: Value,
    lane: Value,
) -> None:
    """Unpack as many rows as a register has lanes (none beyond last) into the lanes from `lane` on of the tile's."""
    per_block, per_group = fmt.block_size // GROUP, GROUP // fmt.scale_group
    rows = row_addresses(v, weights, row_bytes, first, last, v.isa.lanes)
    unpacked = UnpackedTile(v, fmt, tile, n_groups)

    def body(i: Value) -> None:
        sets, all_rows = readers(v, fmt, [row + i * fmt.block_bytes for row in rows])
        scales, biases = scales_by_row(v, fmt, all_rows)
        for g in range(per_block):
            sets_of_weights = [as_multiplied(v, fmt, fmt.unpack(v, some, g)).bitcast(I32) for some in sets]
            halves = zip(*(v.halves(weights) for weights in sets_of_weights), strict=True)
            words = [word for half in halves for word in transpose_quarters(v, list(half))]
            some = slice(g * per_group, (g + 1) * per_group)
            unpacked.store(i * per_block + g, words, scales[some], biases[some], lane)

    v.repeat(n_groups / per_block, body)


def multiply_tiles(
    v: Vocabulary,
    fmt,
    n_planes: int,
    n_tokens: int,
    n_tiles: int,
    tile: Value,
    n_groups: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
    ahead: Value,
    asks: Value,
) -> None:
    """The rows of unpacked tiles, one behind the other, by n_tokens, with one register of 16 sums for each.

    ahead:  as many rows of packed weights, which are prefetched meanwhile if `asks` is 1 and not 0.
    """
    inputs = Inputs(fmt, n_planes, n_groups, q, d, sums)
    unpacked = unpacked_tiles(v, fmt, n_tiles, tile, n_groups)

    def body(g: Value, *totals: Value) -> list[Value]:
        ask_for_group(v, fmt, n_tiles, g, ahead, asks)
        (places,) = inputs.places(v, g, n_tokens)
        return meet_tokens(v, fmt, [partial(one.group, g) for one in unpacked], places, totals)

    totals = v.loop(n_groups, [v.constant(0.0, F32, TILE_ROWS)] * (n_tokens * n_tiles), body)
    store_totals(v, totals, n_tiles, out, out_stride)


def ask_for_group(v: Vocabulary, fmt, n_tiles: int, g: Value, ahead: Value, asks: Value) -> None:
    """Prefetch the g-th part of n_tiles of packed rows, as large as a group of them, if `asks` is 1 and not 0."""
    n_bytes = n_tiles * TILE_ROWS * fmt.block_bytes * GROUP // fmt.block_size
    v.repeat(v.opaque(asks), lambda _: prefetch_part(v, ahead + g * n_bytes, n_bytes))


def tiles_multiplier(isa, fmt, n_planes: int, n_tiles: int):
    """multiply(op, tile, first, ahead): n_tiles of 16 rows each by all tokens.

    They are those from `first` on, unpacked from `tile` on. While the first tokens meet them, those at `ahead` are
    prefetched: evenly, so that memory brings them meanwhile.
    """
    per_sum, at_once, sums_of = fmt.scale_group, isa.tile_tokens, sums_reader(fmt)

    @staged(isa, "void", *["i64"] * 9)
    def tiles_by_tokens(v, *args):
        multiply_tiles(v, fmt, n_planes, at_once, n_tiles, *args)

    @njit(error_model="numpy")
    def multiply(op, tile, first, ahead):
        n_cols = op.n_cols
        sums = sums_of(op)
        # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
        for token in range(0, op.batch.n_tokens, at_once):
            tiles_by_tokens(
                tile,
                op.n_cols // 32,
                op.xq.q + token * n_cols * n_planes,
                op.xq.d + token * (n_cols // 32) * 4,
                sums + token * (n_cols // per_sum) * 4,
                op.out + (token * op.out_stride + first) * 4,
                op.out_stride,
                ahead,
                1 if token == 0 else 0,
            )

    return multiply


def rows_unpacker(isa, fmt):
    """unpack(op, weights, first, tile): 16 rows as `UnpackedTile` has them."""
    n_rows = isa.lanes

    @staged(isa, "void", *["i64"] * 7)
    def unpack_rows(v, *args):
        unpack_tile(v, fmt, *args)

    @njit(error_model="numpy")
    def unpack(op, weights, first, tile):
        for lane in range(0, 16, n_rows):
            unpack_rows(weights, op.row_bytes, first + lane, op.n_rows - 1, op.n_cols // 32, tile, lane)

    return unpack


def prefill_kernel(isa, fmt, n_planes: int, unpack):
    """The kernel for many tokens; `unpack` as `rows_unpacker` makes it."""
    op_at, most, per_scale = record_viewer(LINEAR), isa.tiles_together, fmt.scale_group
    multiply_all = tiles_multiplier(isa, fmt, n_planes, most)
    multiply_one = tiles_multiplier(isa, fmt, n_planes, 1) if most > 1 else multiply_all

    def linear_prefill(record, chunk, thread):
        op = op_at(record)
        tiles = op.scratch + thread * op.scratch_bytes
        tile_bytes = TILE_ROWS * (op.n_cols + 8 * (op.n_cols // per_scale))
        first = chunk * (16 * most)
        n_tiles = min(most, (op.n_rows - first + 15) // 16)
        ahead = next_rows(op, chunk, thread, 16 * most)
        for i in range(n_tiles):
            unpack(op, op.weights, first + i * 16, tiles + i * tile_bytes)
        if n_tiles == most:
            multiply_all(op, tiles, first, ahead)
        else:
            for i in range(n_tiles):
                multiply_one(op, tiles + i * tile_bytes, first + i * 16, ahead + i * 16 * op.row_bytes)

    return linear_prefill


def build_linear_prefill(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by many tokens; a chunk is `tiles_together` times 16 rows."""
    return prefill_kernel(isa, fmt, n_planes, rows_unpacker(isa, fmt))
