"""y = W x for every block format: one dot product for decode and one tile for prefill, over `unpack`.

Weights are read as the file holds them. Inputs are int8 in groups of 32 (see records.QUANTIZED), so that
inside a group the sum is an exact integer; scales come in afterwards as float32:

    sum(w * x) = sum over groups of  scale * d * sum(u * q)  +  bias * (d * sum(q))

with bias = -scale * zero for the formats that store no minimum.

With two planes, an input is twice as long in int8: as its two planes, what rounding left over of the first being the
second (see records.QUANTIZED). Both are summed up by themselves, and then added.

The sum over groups is made in one order, group after group, whichever kernel makes it: a lane holds a row,
never a part of one. So decode and prefill give the same bits, as do any number of threads and every
instruction set, and a text has the same logits in one batch or token by token.
"""

from __future__ import annotations

from numba import njit

from edgellm.kernels.blocks import BlockReader
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import LINEAR, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

GROUP = 32  # weights that share an activation scale
HALF = GROUP // 2
LINE = 64  # bytes of a cache line
SETS = 4  # a register holds quarters of every SETS-th row: so those of all sets meet in order when they are summed


def row_addresses(v: Vocabulary, weights: Value, row_bytes: Value, first: Value, last: Value, n: int) -> list[Value]:
    """Where n rows start, from `first` on; beyond the last row, the last again, whose results nobody reads."""
    return [weights + row_bytes * v.minimum(first + r, last) for r in range(n)]


def prefetch_part(v: Vocabulary, address: Value, n_bytes: int, part: int = 0, n_parts: int = 1) -> None:
    """Prefetch one part of n_bytes; few at a time, for a core can wait for few lines at once."""
    starts = range(0, n_bytes, LINE)
    for start in starts[len(starts) * part // n_parts : len(starts) * (part + 1) // n_parts]:
        v.prefetch(address + start)


@njit(error_model="numpy")
def prefetch_address(op, chunk, thread, row):
    """The weights to prefetch while rows from `row` on are multiplied: op.prefetch_distance bytes further on.

    Beyond the end of the chunk, these are the first ones of what this thread is likely to do next: the chunk that
    comes when every other thread has had one too, or one of the next op.
    """
    end = op.weights + min((chunk + 1) * op.chunk_rows, op.n_rows) * op.row_bytes
    address = op.weights + row * op.row_bytes + op.prefetch_distance
    if address < end:
        return address
    following = chunk + op.n_threads
    if following * op.chunk_rows < op.n_rows:
        return op.weights + following * op.chunk_rows * op.row_bytes + (address - end)
    return op.next_weights + thread * op.next_step + (address - end)


def readers(v: Vocabulary, fmt, rows: list[Value], i: Value) -> tuple[list[BlockReader], BlockReader]:
    """Of the i-th blocks of some rows: those of each set, for their weights, and of all rows, for their scales."""
    addresses = [row + i * fmt.block_bytes for row in rows]
    return [BlockReader(v, addresses[s::SETS]) for s in range(SETS)], BlockReader(v, addresses)


def scales_by_row(v: Vocabulary, fmt, reader: BlockReader) -> tuple[list[Value], list[Value]]:
    """The scales of a block, each for all rows, and what a weight of u = 0 is worth."""
    scales, biases = fmt.unpack_scales(v, reader)
    if biases is None:
        biases = scales * float(-fmt.zero)
    n_rows = len(reader.addresses)
    of_groups = range(0, scales.n, n_rows)
    return [scales[at : at + n_rows] for at in of_groups], [biases[at : at + n_rows] for at in of_groups]


def _by_quarters(v: Vocabulary, a: Value, b: Value, lanes: list[int]) -> Value:
    """In every quarter of the result, these lanes of the same quarters of a (0 to 3) and b (4 to 7)."""
    return v.shuffle(a, b, [start + lane + (a.n - 4) * (lane >= 4) for start in range(0, a.n, 4) for lane in lanes])


def _sum_quarters(v: Vocabulary, sets: list[Value]) -> Value:
    """The sums of all quarters of int32 registers, one for each set; in the order of rows."""

    def fold(a: Value, b: Value, some: list[int], others: list[int]) -> Value:
        return _by_quarters(v, a, b, some) + _by_quarters(v, a, b, others)

    # Single instructions on every CPU.
    a, b = (fold(sets[s], sets[s + 1], [0, 4, 1, 5], [2, 6, 3, 7]) for s in (0, 2))
    return fold(a, b, [0, 1, 4, 5], [2, 3, 6, 7])


def transpose_quarters(v: Vocabulary, sets: list[Value]) -> list[Value]:
    """The four words of all quarters of int32 registers, one for each set: each word of all rows, in their order."""
    words = []
    for lanes in ([0, 4, 1, 5], [2, 6, 3, 7]):
        a, b = (_by_quarters(v, sets[s], sets[s + 1], lanes) for s in (0, 2))
        words += [_by_quarters(v, a, b, [0, 1, 4, 5]), _by_quarters(v, a, b, [2, 3, 6, 7])]
    return words


# --- decode: some rows by one token ------------------------------------------------------------------------


def multiply_rows(
    v: Vocabulary,
    fmt,
    n_planes: int,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_blocks: Value,
    q: Value,
    d: Value,
    sums: Value,
    ahead: Value,
    out: Value,
) -> None:
    """Some rows (`Isa.decode_rows`) from `first` on, none beyond last, by one token."""
    n_rows = v.isa.decode_rows
    rows = row_addresses(v, weights, row_bytes, first, last, n_rows)
    per_block = fmt.block_size // GROUP
    per_group = GROUP // fmt.scale_group
    step_bytes = n_rows * fmt.block_bytes
    n_groups = n_blocks * per_block
    planes = [(q + n_groups * (GROUP * p), d + n_groups * (4 * p), sums + n_groups * (4 * per_group * p))
              for p in range(n_planes)]  # fmt: skip

    def body(i: Value, *totals: Value) -> list[Value]:
        results = list(totals)
        sets, all_rows = readers(v, fmt, rows, i)
        scales, biases = scales_by_row(v, fmt, all_rows)
        for g in range(per_block):
            group = i * per_block + g
            prefetch_part(v, ahead + i * step_bytes, step_bytes, g, per_block)
            weights_of_sets = [v.halves(fmt.unpack(v, some, g)) for some in sets]
            for p, (q, d, sums) in enumerate(planes):
                x_scale = v.f32(d + group * 4)
                dots = _dots(v, fmt, weights_of_sets, q + group * GROUP)
                for s, of_rows in enumerate(dots):
                    at = g * per_group + s
                    results[p] = v.fma(of_rows.to_f32(), scales[at] * x_scale, results[p])
                    results[p] = v.fma(biases[at], v.f32(sums + (group * per_group + s) * 4), results[p])
        return results

    totals = v.loop(n_blocks, [v.constant(0.0, F32, n_rows)] * n_planes, body)
    v.store(out, _sum_planes(totals, n_planes)[0])


def _dots(v: Vocabulary, fmt, weights: list[tuple[Value, Value]], q: Value) -> list[Value]:
    """A group of weights of every row by the int8 at q, for each scale: int32 sums in the order of rows."""
    (first, _), *_ = weights
    x_low, x_high = (v.tile(v.load(q + at, I8, HALF), first.n // HALF) for at in (0, HALF))
    zero = v.constant(0, I32, first.n // 4)
    low = [v.dot_u8_s8(zero, u, x_low, fmt.max_u) for u, _ in weights]
    if fmt.scale_group == GROUP:
        both = [v.dot_u8_s8(dot, u, x_high, fmt.max_u) for dot, (_, u) in zip(low, weights, strict=True)]
        return [_sum_quarters(v, both)]
    high = [v.dot_u8_s8(zero, u, x_high, fmt.max_u) for _, u in weights]
    return [_sum_quarters(v, low), _sum_quarters(v, high)]


def _sum_planes(totals: list[Value], n_planes: int) -> list[Value]:
    """The planes of every token, one behind the other, added."""
    return totals if n_planes == 1 else [a + b for a, b in zip(totals[::2], totals[1::2], strict=True)]


def build_linear_decode(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by few tokens: reads the weights once, as fast as memory gives them."""
    op_at = record_viewer(LINEAR)
    per_sum, per_block, n_rows = fmt.scale_group, fmt.block_size, isa.decode_rows

    @staged(isa, "void", *["i64"] * 10)
    def dot_rows(v, *args):
        multiply_rows(v, fmt, n_planes, *args)

    def linear_decode(record, chunk, thread):
        op = op_at(record)
        n_cols = op.n_cols * n_planes  # of a token, in the input
        sums = op.xq.sum32 if per_sum == 32 else op.xq.sum16
        first = chunk * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), n_rows):
            ahead = prefetch_address(op, chunk, thread, row)
            for token in range(op.batch.n_tokens):
                dot_rows(
                    op.weights,
                    op.row_bytes,
                    row,
                    op.n_rows - 1,
                    op.n_cols // per_block,
                    op.xq.q + token * n_cols,
                    op.xq.d + token * (n_cols // 32) * 4,
                    sums + token * (n_cols // per_sum) * 4,
                    ahead,
                    op.out + (token * op.out_stride + row) * 4,
                )

    return linear_decode


# --- prefill: a tile of 16 rows by many tokens -------------------------------------------------------------
#
# The tile lies in scratch memory, unpacked once for all tokens: for every group of 32 columns eight registers
# of 16 rows x 4 bytes, so that one multiply of bytes meets four columns of all 16 rows; behind them the scales
# and then the biases, 16 rows side by side.


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
    per_block = fmt.block_size // GROUP
    scales_per_block = fmt.block_size // fmt.scale_group
    rows = row_addresses(v, weights, row_bytes, first, last, v.isa.lanes)
    scales_at = tile + n_groups * (TILE_ROWS * GROUP) + lane * 4
    biases_at = scales_at + n_groups * (GROUP // fmt.scale_group * TILE_ROWS * 4)

    def body(i: Value) -> list[Value]:
        sets, all_rows = readers(v, fmt, rows, i)
        scales, biases = scales_by_row(v, fmt, all_rows)
        for g in range(per_block):
            halves = zip(*(v.halves(fmt.unpack(v, some, g).bitcast(I32)) for some in sets), strict=True)
            words = [word for half in halves for word in transpose_quarters(v, list(half))]
            at = tile + (i * per_block + g) * (TILE_ROWS * GROUP) + lane * 4
            for k, word in enumerate(words):
                v.store(at + k * TILE_ROWS * 4, word)
        for s in range(scales_per_block):
            at = (i * scales_per_block + s) * (TILE_ROWS * 4)
            v.store(scales_at + at, scales[s])
            v.store(biases_at + at, biases[s])
        return []

    v.loop(n_groups / per_block, [], body)


def multiply_tile(
    v: Vocabulary,
    fmt,
    n_planes: int,
    n_inputs: int,
    tile: Value,
    n_groups: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
) -> None:
    """The 16 rows of an unpacked tile by n_inputs planes of tokens, with one register of 16 sums for each."""
    per_group = GROUP // fmt.scale_group
    scales_at = tile + n_groups * (TILE_ROWS * GROUP)
    biases_at = scales_at + n_groups * (per_group * TILE_ROWS * 4)
    n_words = GROUP // 4 // per_group
    q_stride, d_stride, sums_stride = n_groups * GROUP, n_groups * 4, n_groups * (4 * per_group)
    zero = v.constant(0, I32, TILE_ROWS)

    def body(g: Value, *totals: Value) -> list[Value]:
        words = [v.load(tile + g * (TILE_ROWS * GROUP) + k * TILE_ROWS * 4, I8, TILE_ROWS * 4) for k in range(8)]
        scales, biases = (
            [v.f32(at + (g * per_group + s) * (TILE_ROWS * 4), TILE_ROWS) for s in range(per_group)]
            for at in (scales_at, biases_at)
        )
        results = []
        for i, total in enumerate(totals):
            x = q + q_stride * i + g * GROUP
            x_scale = v.f32(d + d_stride * i + g * 4)
            for s in range(per_group):
                dots = zero
                for k in range(s * n_words, (s + 1) * n_words):
                    x_word = v.splat(v.u32(x + k * 4), TILE_ROWS).bitcast(I8)
                    dots = v.dot_u8_s8(dots, words[k], x_word, fmt.max_u)
                total = v.fma(dots.to_f32(), scales[s] * x_scale, total)
                x_sum = v.f32(sums + sums_stride * i + (g * per_group + s) * 4)
                total = v.fma(biases[s], x_sum, total)
            results.append(total)
        return results

    totals = v.loop(n_groups, [v.constant(0.0, F32, TILE_ROWS)] * n_inputs, body)
    for token, total in enumerate(_sum_planes(totals, n_planes)):
        v.store(out + out_stride * (4 * token), total)


def build_linear_prefill(isa, fmt, n_planes=1):
    """W [n_rows, n_cols] by many tokens; chunk c is the rows from 16 c on."""
    op_at = record_viewer(LINEAR)
    per_sum = fmt.scale_group
    at_once, n_rows = isa.tile_tokens // n_planes, isa.lanes

    @staged(isa, "void", *["i64"] * 7)
    def unpack_rows(v, *args):
        unpack_tile(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 7)
    def tile_by_tokens(v, *args):
        multiply_tile(v, fmt, n_planes, at_once * n_planes, *args)

    def linear_prefill(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        n_cols = op.n_cols * n_planes  # of a token, in the input
        sums = op.xq.sum32 if per_sum == 32 else op.xq.sum16
        tile = op.scratch + thread * op.scratch_bytes
        first = chunk * 16
        for lane in range(0, 16, n_rows):
            unpack_rows(op.weights, op.row_bytes, first + lane, op.n_rows - 1, n_groups, tile, lane)
        # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
        for token in range(0, op.batch.n_tokens, at_once):
            tile_by_tokens(
                tile,
                n_groups,
                op.xq.q + token * n_cols,
                op.xq.d + token * (n_cols // 32) * 4,
                sums + token * (n_cols // per_sum) * 4,
                op.out + (token * op.out_stride + first) * 4,
                op.out_stride,
            )

    return linear_prefill
