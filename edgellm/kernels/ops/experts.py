"""y = W x with a matrix of many for every pair of a token and one of its experts (see `kernels.expert_records`).

The products are those of `linear.py` and `linear_f32.py`, row for row: so a pair has the same bits whoever shares its
batch. Kernels differ in who reads the weights when:

- for few tokens, a chunk is some rows of one pair's expert, read in place. Where several tokens have the same expert,
  the first of these pairs does the work of all, so weights are read once.
- for many, pairs are sorted by expert. A chunk is some rows of one expert: tiles of 16 are unpacked once and meet its
  pairs, whose inputs are gathered some at a time.

No other expert's weights are touched.
"""

from __future__ import annotations

from numba import njit

from edgellm.kernels.expert_records import EXPERTS
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops import linear, linear_decode, linear_f32
from edgellm.kernels.ops.expert_rows import expert_finder
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.shares import share_start
from edgellm.kernels.staged import staged
from edgellm.quants.floats import FloatFormat

TILE_ROWS = 16


def pair_words(isa):
    """Of a pair: which input row it has, where its results go, and putting them there."""
    copy = memory(isa).copy_f32

    @njit(error_model="numpy")
    def input_of(op, pair):
        return pair if op.x_parts == op.n_used else pair // op.n_used

    @njit(error_model="numpy")
    def f32_input_of(op, pair):
        at = pair // op.n_used * op.x_stride
        return op.x + (at + (pair % op.n_used * op.n_cols if op.x_parts == op.n_used else 0)) * 4

    @njit(error_model="numpy")
    def output_of(op, pair):
        return op.out + (pair // op.n_used * op.out_stride + pair % op.n_used * op.n_rows) * 4

    @njit(error_model="numpy")
    def put(op, pair, row, found, n):
        """Of n results from `row` on, those that there are: behind the last row, another pair's begin."""
        copy(found, output_of(op, pair) + row * 4, min(n, op.n_rows - row))

    return input_of, f32_input_of, output_of, put


# --- few tokens --------------------------------------------------------------------------------------------


def for_few(isa, n_step, multiply):
    """The kernel for few tokens: multiply(op, weights, row, pair, ahead, out, spare) makes n_step rows of a pair.

    spare:  memory for n_step rows.
    """
    op_at, expert_of = record_viewer(EXPERTS), expert_finder(isa)
    _, _, output_of, put = pair_words(isa)

    @njit(error_model="numpy")
    def prefetch_address(op, chunk, thread, row, end, weights):
        """As in `prefetching.prefetch_address`; the next chunk may be another expert's."""
        address = weights + row * op.row_bytes + op.prefetch_distance
        beyond = address - (weights + end * op.row_bytes)
        following, n_chunks = chunk + 1, op.batch.n_tokens * op.n_used * op.small_chunks_of
        if beyond < 0 or following in (n_chunks, share_start(n_chunks, thread + 1, op.n_threads)):
            return address
        pair = following // op.small_chunks_of
        first = following % op.small_chunks_of * op.small_chunk_rows
        return op.weights + expert_of(op, pair) * op.expert_bytes + first * op.row_bytes + beyond

    def few(record, chunk, thread):
        op = op_at(record)
        found = op.scratch + thread * op.scratch_bytes
        spare = found + n_step * 4
        n_pairs = op.batch.n_tokens * op.n_used
        first_pair = chunk // op.small_chunks_of
        expert = expert_of(op, first_pair)
        for pair in range(first_pair):
            if expert_of(op, pair) == expert:
                return
        weights = op.weights + expert * op.expert_bytes
        first = chunk % op.small_chunks_of * op.small_chunk_rows
        end = min(first + op.small_chunk_rows, op.n_rows)
        for row in range(first, end, n_step):
            ahead = prefetch_address(op, chunk, thread, row, end, weights)
            for pair in range(first_pair, n_pairs):
                if expert_of(op, pair) == expert:
                    if row + n_step <= op.n_rows:
                        multiply(op, weights, row, pair, ahead, output_of(op, pair) + row * 4, spare)
                    else:
                        multiply(op, weights, row, pair, ahead, found, spare)
                        put(op, pair, row, found, n_step)

    return few


def build_experts_decode(isa, fmt):
    """Int8 inputs of few tokens."""
    per_sum, per_block, sums_of = fmt.scale_group, fmt.block_size, linear.sums_reader(fmt)
    input_of, _, _, _ = pair_words(isa)

    rows_at = linear_decode.rows_finder(isa)

    @staged(isa, "void", *["i64"] * 8)
    def dot_rows(v, *args):
        linear_decode.multiply_rows(v, fmt, 1, *args)

    @njit(error_model="numpy")
    def multiply(op, weights, row, pair, ahead, out, spare):
        at = input_of(op, pair) * op.n_cols
        dot_rows(
            rows_at(op, weights, row, spare),
            op.row_bytes,
            op.n_cols // per_block,
            op.xq.q + at,
            op.xq.d + at // 32 * 4,
            sums_of(op) + at // per_sum * 4,
            ahead,
            out,
        )

    return for_few(isa, isa.lanes, multiply)


def build_experts_f32_decode(isa, fmt):
    """Float weights, for few tokens."""
    _, f32_input_of, _, _ = pair_words(isa)

    @staged(isa, "void", *["i64"] * 8)
    def dot_rows(v, *args):
        linear_f32.multiply_rows(v, fmt, *args)

    @njit(error_model="numpy")
    def multiply(op, weights, row, pair, ahead, out, spare):
        dot_rows(weights, op.row_bytes, row, op.n_rows - 1, op.n_cols, f32_input_of(op, pair), ahead, out)

    return for_few(isa, TILE_ROWS, multiply)


# --- many tokens -------------------------------------------------------------------------------------------


def for_many(isa, at_once, unpack, gather, multiply_some, multiply_one):
    """The kernel for many tokens.

    unpack(op, weights, row, tile):    16 rows of an expert into the tile, at the start of scratch memory.
    gather(op, pair, i, tile):         a pair's input to the i-th place behind the tile.
    multiply_some(op, tile, ahead, asks):       the tile by `at_once` gathered inputs; returns where the results are,
                                                16 a pair. If `asks` is 1, the rows at `ahead` may be prefetched.
    multiply_one(op, pair, tile, ahead, asks):  the tile by one pair's input where it is; the same.
    """
    op_at = record_viewer(EXPERTS)
    load_i64 = memory(isa).load_i64
    _, _, _, put = pair_words(isa)
    few = at_once // 4  # so many by themselves take less time than a tile of all

    def many(record, chunk, thread):
        op = op_at(record)
        expert = chunk // op.chunks_of
        begin = load_i64(op.ends + (expert - 1) * 8) if expert > 0 else 0
        n_pairs = load_i64(op.ends + expert * 8) - begin
        if n_pairs == 0:
            return
        tile = op.scratch + thread * op.scratch_bytes
        weights, order = op.weights + expert * op.expert_bytes, op.order + begin * 8
        first = chunk % op.chunks_of * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), 16):
            unpack(op, weights, row, tile)
            ahead = weights + (row + 16) * op.row_bytes
            for start in range(0, n_pairs, at_once):
                n = min(at_once, n_pairs - start)
                if n <= few:
                    for i in range(start, start + n):
                        pair = load_i64(order + i * 8)
                        put(op, pair, row, multiply_one(op, pair, tile, ahead, 1 if i == 0 else 0), 16)
                    continue
                if row == first or n_pairs > at_once:  # otherwise they are there already
                    for i in range(n):
                        gather(op, load_i64(order + (start + i) * 8), i, tile)
                found = multiply_some(op, tile, ahead, 1 if start == 0 else 0)
                for i in range(n):
                    put(op, load_i64(order + (start + i) * 8), row, found + i * 64, 16)

    return many


def int8_for_many(isa, fmt, unpack):
    """The kernel for int8 inputs of many tokens; `unpack` as `linear.rows_unpacker` makes it."""
    per_sum, at_once, sums_of = fmt.scale_group, isa.tile_tokens, linear.sums_reader(fmt)
    input_of, _, _, _ = pair_words(isa)
    copy = memory(isa).copy_f32

    @staged(isa, "void", *["i64"] * 9)
    def by_some(v, *args):
        linear.multiply_tiles(v, fmt, 1, at_once, 1, *args)

    @staged(isa, "void", *["i64"] * 9)
    def by_one(v, *args):
        linear.multiply_tiles(v, fmt, 1, 1, 1, *args)

    @njit(error_model="numpy")
    def places(op, tile):
        """Behind the tile: bytes of inputs, their scales, their sums, and results."""
        q = tile + 16 * (op.n_cols + 8 * (op.n_cols // per_sum))
        d = q + at_once * op.n_cols
        sums = d + at_once * (op.n_cols // 32) * 4
        return q, d, sums, sums + at_once * (op.n_cols // per_sum) * 4

    @njit(error_model="numpy")
    def gather(op, pair, i, tile):
        q, d, sums, _ = places(op, tile)
        at, n = input_of(op, pair) * op.n_cols, op.n_cols
        copy(op.xq.q + at, q + i * n, n // 4)
        copy(op.xq.d + at // 32 * 4, d + i * (n // 32) * 4, n // 32)
        copy(sums_of(op) + at // per_sum * 4, sums + i * (n // per_sum) * 4, n // per_sum)

    @njit(error_model="numpy")
    def multiply_some(op, tile, ahead, asks):
        q, d, sums, found = places(op, tile)
        by_some(tile, op.n_cols // 32, q, d, sums, found, 16, ahead, asks)
        return found

    @njit(error_model="numpy")
    def multiply_one(op, pair, tile, ahead, asks):
        _, _, _, found = places(op, tile)
        at = input_of(op, pair) * op.n_cols
        q, d, sums = op.xq.q + at, op.xq.d + at // 32 * 4, sums_of(op) + at // per_sum * 4
        by_one(tile, op.n_cols // 32, q, d, sums, found, 16, ahead, asks)
        return found

    return for_many(isa, at_once, unpack, gather, multiply_some, multiply_one)


def build_experts_prefill(isa, fmt):
    """Int8 inputs of many tokens; tile as in `linear_prefill`."""
    return int8_for_many(isa, fmt, linear.rows_unpacker(isa, fmt))


def build_experts_f32(isa, fmt):
    """Any weights in float32, for any number of tokens; the tile is a column of 16 rows after the other."""
    is_float = isinstance(fmt, FloatFormat)
    lanes = linear_f32.STEP if is_float else isa.lanes
    at_once = linear_f32.tokens_at_once(isa, TILE_ROWS)
    _, f32_input_of, _, _ = pair_words(isa)
    copy = memory(isa).copy_f32

    @staged(isa, "void", *["i64"] * 8)
    def unpack_rows(v, *args):
        (linear_f32.unpack_floats if is_float else linear_f32.unpack_blocks)(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 7)
    def by_some(v, *args):
        linear_f32.multiply_tile(v, TILE_ROWS, at_once, *args)

    @staged(isa, "void", *["i64"] * 7)
    def by_one(v, *args):
        linear_f32.multiply_tile(v, TILE_ROWS, 1, *args)

    @njit(error_model="numpy")
    def places(op, tile):
        x = tile + 64 * op.n_cols
        return x, x + at_once * op.n_cols * 4

    @njit(error_model="numpy")
    def unpack(op, weights, row, tile):
        for lane in range(0, 16, lanes):
            unpack_rows(weights, op.row_bytes, row + lane, op.n_rows - 1, 0, op.n_cols, tile + lane * 4, 64)

    @njit(error_model="numpy")
    def gather(op, pair, i, tile):
        x, _ = places(op, tile)
        copy(f32_input_of(op, pair), x + i * op.n_cols * 4, op.n_cols)

    @njit(error_model="numpy")
    def multiply_some(op, tile, ahead, asks):
        x, found = places(op, tile)
        by_some(tile, op.n_cols, 1, x, op.n_cols, found, 16)
        return found

    @njit(error_model="numpy")
    def multiply_one(op, pair, tile, ahead, asks):
        _, found = places(op, tile)
        by_one(tile, op.n_cols, 1, f32_input_of(op, pair), 0, found, 16)
        return found

    return for_many(isa, at_once, unpack, gather, multiply_some, multiply_one)
