"""y = W x from tiles: 16 rows of weights, laid out in the order in which they are read here (see `quants.tiles`).

Weights come from memory as one stream, and a register holds a word of every row: nothing has to be inserted, turned or
folded. Those of a group are unpacked once and meet several tokens; so a pass of few tokens takes hardly longer than one
of a single token, as long as memory gives weights no faster than they are multiplied.

The float32 operations for a row are those of `ops/linear.py`, one after the other: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import prefill_kernel, sums_reader
from edgellm.kernels.ops.prefetching import prefetch_address, prefetch_part
from edgellm.kernels.ops.tile_products import (
    GROUP,
    GroupOfRows,
    Inputs,
    TileScales,
    UnpackedTile,
    as_multiplied,
    meet_tokens,
    store_totals,
)
from edgellm.kernels.records import LINEAR, PREFETCHES, TILE_ROWS
from edgellm.kernels.staged import F32, I64, Value, Vocabulary, staged
from edgellm.kernels.tile_words import Registers, TileReader

Scales = Sequence[tuple[Registers, Registers]]  # and biases, of some groups
# Of each way to prefetch, the level that `Vocabulary.prefetch` is told.
LEVELS = {"first_level": 1, "non_temporal": 0, "both_levels": 2}
# So far before its use, what comes into the second level is prefetched again: a core drops some of those prefetches.
NEAR_BYTES = 1536
FIRST_LEVEL, NON_TEMPORAL = (PREFETCHES.index(what) for what in ("first_level", "non_temporal"))


def multiply_few(
    v: Vocabulary,
    fmt,
    n_planes: int,
    n_tokens: int,
    tile: Value,
    n_blocks: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
    ahead: Value,
    *,
    prefetch: str | None = None,
    finish: Callable[[list[Value]], list[Value]] = list,
) -> None:
    """The rows of a tile by n_tokens, with 16 sums for each.

    Tokens meet weights in the registers into which they were unpacked.

    ahead:  what is prefetched meanwhile. prefetch: where to, one of `records.PREFETCHES`; None is what suits the CPU.
    finish:  what becomes of the sums before they are stored.
    """
    per_block, block_bytes = fmt.block_size // GROUP, fmt.block_bytes * TILE_ROWS
    tokens = Inputs(fmt, n_planes, n_blocks * per_block, q, d, sums)
    n_groups = groups_at_once(v, fmt, n_tokens)
    n_rounds = per_block // n_groups
    round_bytes = block_bytes // n_rounds
    if n_rounds > 1:
        kept = TileScales(v, fmt, v.on_stack(2 * fmt.block_size // fmt.scale_group * TILE_ROWS * 4), per_block)
    # As evenly as can be: while a core waits to ask for the next line, it multiplies nothing.
    n_words, level = GROUP // 4, LEVELS[prefetch] if prefetch else v.isa.stream_level

    def meet_groups(block: TileReader, scales: Scales, first: Value, at: Value, totals: Sequence[Value]) -> list[Value]:
        """n_groups of a block. first: which of a row's groups the first one is. at: where it is in the tile."""
        places = tokens.places(v, first, n_tokens, n_groups)
        results = list(totals)
        for g in range(n_groups):

            def ask(word: int, g: int = g) -> None:
                part = round_bytes, g * n_words + word, n_groups * n_words
                prefetch_part(v, ahead + at, *part, level)
                if level == 2:
                    prefetch_part(v, tile + at + NEAR_BYTES, *part, level=1)

            rows = GroupOfRows(weights_of(fmt, block, g), *scales[g])
            results = meet_tokens(v, fmt, [rows.itself], places[g], results, ask)
        return results

    def body(i: Value, *totals: Value) -> list[Value]:
        block = TileReader(v, fmt, tile + i * block_bytes)
        scales = scales_by_group(fmt, block)
        if n_rounds == 1:
            return meet_groups(block, scales, i * per_block, i * block_bytes, totals)
        # Which of them a round of the loop needs is not known before, so all are in memory by then.
        for g, some in enumerate(scales):
            kept.store(g, *some)

        def some_groups(k: Value, *totals: Value) -> list[Value]:
            first, at = i * per_block + k * n_groups, i * block_bytes + k * round_bytes
            of_round = [kept.of(k * n_groups + g) for g in range(n_groups)]
            return meet_groups(block.from_group(k, n_groups), of_round, first, at, totals)

        return v.loop(v.constant(n_rounds, I64), totals, some_groups)

    totals = v.loop(n_blocks, [v.constant(0.0, F32, TILE_ROWS)] * n_tokens, body)
    store_totals(v, finish(totals), 1, out, out_stride)


def groups_at_once(v: Vocabulary, fmt, n_tokens: int) -> int:
    """How many groups of a block are written out one after the other; a loop goes over the block in such steps.

    All of them, but where that is more code than a core keeps decoded (see `Isa.has_long_code`): it would decode
    all of it again for each block.
    """
    loops = v.isa.has_long_code and n_tokens > 2 and fmt.n_alike
    return fmt.n_alike if loops else fmt.block_size // GROUP


def scales_by_group(fmt, block: TileReader) -> list[tuple[Registers, Registers]]:
    """The scales and biases of each group of a block."""
    per_group = GROUP // fmt.scale_group
    scales, biases = block.unpack_scales()
    parts = [slice(at, at + per_group) for at in range(0, len(scales), per_group)]
    return [(scales[part], biases[part]) for part in parts]


def weights_of(fmt, block: TileReader, g: int) -> Registers:
    """The g-th group of a block, as it is multiplied."""
    return block.unpack(g).each(lambda word: as_multiplied(block.v, fmt, word))


def build_linear_tiles(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by few tokens; a chunk is chunk_rows, a multiple of 16."""
    op_at = record_viewer(LINEAR)
    per_sum, per_block, sums_of = fmt.scale_group, fmt.block_size, sums_reader(fmt)
    most, some = isa.tile_tokens, isa.tile_tokens // 2

    def kernel_of(n_tokens: int, prefetch: str | None = None):
        @staged(isa, "void", *["i64"] * 8)
        def tile_by_few(v, *args):
            multiply_few(v, fmt, n_planes, n_tokens, *args, prefetch=prefetch)

        return tile_by_few

    by_one, by_one_non_temporal, by_one_both_levels = (kernel_of(1, prefetch) for prefetch in PREFETCHES)
    by_two, by_most = kernel_of(2), kernel_of(most)
    by_some = kernel_of(some) if some > 2 else by_two

    def linear_tiles(record, chunk, thread):
        op = op_at(record)
        sums = sums_of(op)
        n_blocks, n_tokens = op.n_cols // per_block, op.batch.n_tokens
        first = chunk * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), 16):
            tile, ahead = op.weights + row * op.row_bytes, prefetch_address(op, chunk, thread, row)
            token = 0
            while token < n_tokens:
                left = n_tokens - token
                q = op.xq.q + token * op.n_cols * n_planes
                d = op.xq.d + token * (op.n_cols // 32) * 4
                s = sums + token * (op.n_cols // per_sum) * 4
                out = op.out + (token * op.out_stride + row) * 4
                # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
                if left > most - 2:
                    by_most(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    token += most
                elif left > 2:
                    by_some(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    token += some
                elif left == 2:
                    by_two(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    token += 2
                else:
                    if op.prefetch == NON_TEMPORAL:
                        by_one_non_temporal(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    elif op.prefetch == FIRST_LEVEL:
                        by_one(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    else:
                        by_one_both_levels(tile, n_blocks, q, d, s, out, op.out_stride, ahead)
                    token += 1

    return linear_tiles


# --- prefill: a tile unpacked once for all tokens ----------------------------------------------------------


def tile_unpacker(isa, fmt):
    """unpack(op, weights, first, tile): as `rows_unpacker` makes it, of weights that lie as tiles."""
    block_size, block_bytes, per_block = fmt.block_size, fmt.block_bytes * TILE_ROWS, fmt.block_size // GROUP

    @staged(isa, "void", *["i64"] * 3)
    def unpack_tile(v, weights, n_blocks, tile):
        unpacked = UnpackedTile(v, fmt, tile, n_blocks * per_block)

        def body(i: Value) -> None:
            block = TileReader(v, fmt, weights + i * block_bytes)
            for g, scales in enumerate(scales_by_group(fmt, block)):
                unpacked.store(i * per_block + g, weights_of(fmt, block, g), *scales)

        v.repeat(n_blocks, body)

    @njit(error_model="numpy")
    def unpack(op, weights, first, tile):
        unpack_tile(weights + first * op.row_bytes, op.n_cols // block_size, tile)

    return unpack


def build_linear_tiles_prefill(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by many tokens; chunk c is the rows from 16 c on."""
    return prefill_kernel(isa, fmt, n_planes, tile_unpacker(isa, fmt))
