"""y = W x for every block format: one dot product for decode and one tile for prefill, over `unpack`.

Weights are read as the file holds them. Inputs are int8 in groups of 32 (see records.QUANTIZED), so that
inside a group the sum is an exact integer; scales come in afterwards as float32:

    sum(w * x) = sum over groups of  scale * d * sum(u * q)  +  bias * (d * sum(q))

with bias = -scale * zero for the formats that store no minimum.

The sum over groups is made in one order, group after group, whichever kernel makes it: a lane holds a row,
never a part of one. So decode and prefill give the same bits, as do any number of threads and every
instruction set, and a text has the same logits in one batch or token by token.
"""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import LINEAR, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

GROUP = 32  # weights that share an activation scale
LINE = 64  # bytes of a cache line


def eight_rows(v: Vocabulary, weights: Value, row_bytes: Value, first: Value, last: Value) -> list[Value]:
    """Where rows first to first + 7 start; beyond the last row, the last again, whose results nobody reads."""
    return [weights + row_bytes * v.minimum(first + r, last) for r in range(8)]


def prefetch_next(v: Vocabulary, rows: Value, ahead: Value, i: Value, n_bytes: int) -> None:
    """For the i-th step through neighbouring rows, which uses up n_bytes: ask for as many, far ahead in the file."""
    for line in range(0, n_bytes, LINE):
        v.prefetch(rows + ahead + i * n_bytes + line)


def _by_scale(v: Vocabulary, of_rows: list[Value]) -> list[Value]:
    """Eight rows of n scales each -> n registers of eight rows."""
    n = of_rows[0].n
    if n == 1:
        column = v.vector_of(of_rows)
        return [column if column.element == F32 else column.to_f32()]
    return [column for start in range(0, n, 8) for column in v.transpose8([row[start : start + 8] for row in of_rows])]


def _biases(v: Vocabulary, fmt, unpacked: list, scales: list[Value]) -> list[Value]:
    """What a weight of u = 0 is worth, likewise by scale."""
    if unpacked[0].biases is None:
        return [scale * float(-fmt.zero) for scale in scales]
    return _by_scale(v, [u.biases for u in unpacked])


# --- decode: eight rows by one token -----------------------------------------------------------------------


def _dot_rows(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_blocks: Value,
    q: Value,
    d: Value,
    sums: Value,
    prefetch: Value,
    out: Value,
) -> None:
    """Rows first to first + 7 (none beyond last) by one token; a lane of the result is a row."""
    rows = eight_rows(v, weights, row_bytes, first, last)
    per_block = fmt.block_size // GROUP
    per_group = GROUP // fmt.scale_group

    def body(i: Value, total: Value) -> list[Value]:
        prefetch_next(v, rows[0], prefetch, i, 8 * fmt.block_bytes)
        unpacked = [fmt.unpack(v, row + i * fmt.block_bytes) for row in rows]
        scales = _by_scale(v, [u.scales for u in unpacked])
        biases = _biases(v, fmt, unpacked, scales)
        for g in range(per_block):
            group = i * per_block + g
            x = v.load(q + group * GROUP, I8, GROUP)
            x_scale = v.f32(d + group * 4)
            dots = [v.dot_u8_s8(v.constant(0, I32, 8), u.weights(g), x, fmt.max_u) for u in unpacked]
            for s, sums_of_rows in enumerate(_sum_lanes(v, dots, per_group)):
                at = g * per_group + s
                total = v.fma(sums_of_rows.to_f32(), scales[at] * x_scale, total)
                total = v.fma(biases[at], v.f32(sums + (group * per_group + s) * 4), total)
        return [total]

    (total,) = v.loop(n_blocks, [v.constant(0.0, F32, 8)], body)
    v.store(out, total)


def _sum_lanes(v: Vocabulary, rows: list[Value], n_parts: int) -> list[Value]:
    """The sums of eight rows of eight lanes, or of their lower and upper halves: a lane of the result is a row."""

    def fold(a: Value, b: Value, low: list[int]) -> Value:
        """Lanes `low` of a and b plus the lanes two further on, within each half of the registers."""
        high = [lane + 2 for lane in low]
        return v.shuffle(a, b, low) + v.shuffle(a, b, high)

    # Interleave by ones, then by twos: single instructions on every CPU.
    pairs = [fold(rows[i], rows[i + 1], [0, 8, 1, 9, 4, 12, 5, 13]) for i in range(0, 8, 2)]
    fours = [fold(pairs[i], pairs[i + 1], [0, 1, 8, 9, 4, 5, 12, 13]) for i in range(0, 4, 2)]
    halves = [
        v.shuffle(fours[0], fours[1], [half * 4 + lane % 4 + 8 * (lane // 4) for lane in range(8)]) for half in range(2)
    ]
    return halves if n_parts == 2 else [halves[0] + halves[1]]


def build_linear_decode(isa, fmt):
    """W [n_rows, n_cols] by few tokens: reads the weights once, as fast as memory gives them."""
    op_at = record_viewer(LINEAR)
    per_sum, per_block = fmt.scale_group, fmt.block_size

    @staged(isa, "void", *["i64"] * 10)
    def dot_rows(v, *args):
        _dot_rows(v, fmt, *args)

    def linear_decode(record, chunk, thread):
        op = op_at(record)
        n_sums = op.n_cols // per_sum
        sums = op.xq.sum32 if per_sum == 32 else op.xq.sum16
        first = chunk * op.chunk_rows
        for token in range(op.batch.n_tokens):
            q = op.xq.q + token * op.n_cols
            d = op.xq.d + token * (op.n_cols // 32) * 4
            s = sums + token * n_sums * 4
            out = op.out + token * op.out_stride * 4
            for row in range(first, min(first + op.chunk_rows, op.n_rows), 8):
                dot_rows(
                    op.weights,
                    op.row_bytes,
                    row,
                    op.n_rows - 1,
                    op.n_cols // per_block,
                    q,
                    d,
                    s,
                    op.prefetch,
                    out + row * 4,
                )

    return linear_decode


# --- prefill: a tile of 16 rows by many tokens -------------------------------------------------------------
#
# The tile lies in scratch memory, unpacked once for all tokens: for every group of 32 columns eight registers
# of 16 rows x 4 bytes, so that one multiply of bytes meets four columns of all 16 rows; behind them the scales
# and then the biases, 16 rows side by side.


def _unpack_half_tile(
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
    """Unpack rows first to first + 7 (none beyond last) into the lanes from `lane` on of all registers."""
    per_block = fmt.block_size // GROUP
    scales_per_block = fmt.block_size // fmt.scale_group
    rows = eight_rows(v, weights, row_bytes, first, last)
    scales_at = tile + n_groups * (TILE_ROWS * GROUP) + lane * 4
    biases_at = scales_at + n_groups * (GROUP // fmt.scale_group * TILE_ROWS * 4)

    def body(i: Value) -> list[Value]:
        unpacked = [fmt.unpack(v, row + i * fmt.block_bytes) for row in rows]
        scales = _by_scale(v, [u.scales for u in unpacked])
        biases = _biases(v, fmt, unpacked, scales)
        for g in range(per_block):
            columns = v.transpose8([u.weights(g).bitcast(I32) for u in unpacked])
            at = tile + (i * per_block + g) * (TILE_ROWS * GROUP) + lane * 4
            for k, column in enumerate(columns):
                v.store(at + k * TILE_ROWS * 4, column)
        for s in range(scales_per_block):
            at = (i * scales_per_block + s) * (TILE_ROWS * 4)
            v.store(scales_at + at, scales[s])
            v.store(biases_at + at, biases[s])
        return []

    v.loop(n_groups / per_block, [], body)


def _tile_by_tokens(
    v: Vocabulary,
    fmt,
    n_tokens: int,
    tile: Value,
    n_groups: Value,
    q: Value,
    d: Value,
    sums: Value,
    out: Value,
    out_stride: Value,
) -> None:
    """The 16 rows of an unpacked tile by n_tokens tokens, with one register of 16 sums for each token."""
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
        for token, total in enumerate(totals):
            x = q + q_stride * token + g * GROUP
            x_scale = v.f32(d + d_stride * token + g * 4)
            for s in range(per_group):
                dots = zero
                for k in range(s * n_words, (s + 1) * n_words):
                    x_word = v.splat(v.u32(x + k * 4), TILE_ROWS).bitcast(I8)
                    dots = v.dot_u8_s8(dots, words[k], x_word, fmt.max_u)
                total = v.fma(dots.to_f32(), scales[s] * x_scale, total)
                x_sum = v.f32(sums + sums_stride * token + (g * per_group + s) * 4)
                total = v.fma(biases[s], x_sum, total)
            results.append(total)
        return results

    totals = v.loop(n_groups, [v.constant(0.0, F32, TILE_ROWS)] * n_tokens, body)
    for token, total in enumerate(totals):
        v.store(out + out_stride * (4 * token), total)


def build_linear_prefill(isa, fmt):
    """W [n_rows, n_cols] by many tokens; chunk c is the rows from 16 c on."""
    op_at = record_viewer(LINEAR)
    per_sum = fmt.scale_group
    at_once = isa.tile_tokens

    @staged(isa, "void", *["i64"] * 7)
    def unpack_half_tile(v, *args):
        _unpack_half_tile(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 7)
    def tile_by_tokens(v, *args):
        _tile_by_tokens(v, fmt, at_once, *args)

    def linear_prefill(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        n_sums = op.n_cols // per_sum
        sums = op.xq.sum32 if per_sum == 32 else op.xq.sum16
        tile = op.scratch + thread * op.scratch_bytes
        first = chunk * 16
        for half in range(2):
            unpack_half_tile(op.weights, op.row_bytes, first + 8 * half, op.n_rows - 1, n_groups, tile, 8 * half)
        # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
        for token in range(0, op.batch.n_tokens, at_once):
            tile_by_tokens(
                tile,
                n_groups,
                op.xq.q + token * op.n_cols,
                op.xq.d + token * n_groups * 4,
                sums + token * n_sums * 4,
                op.out + (token * op.out_stride + first) * 4,
                op.out_stride,
            )

    return linear_prefill
