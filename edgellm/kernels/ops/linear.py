"""y = W x for every block format: one dot product for decode and one tile for prefill, over `unpack`.

Weights are read as the file holds them. Inputs are int8 in groups of 32 (see records.QUANTIZED), so that
inside a group the sum is an exact integer; scales come in afterwards as float32:

    sum(w * x) = sum over groups of  scale * d * sum(u * q)  +  bias * (d * sum(q))

with bias = -scale * zero for the formats that store no minimum.
"""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import LINEAR, TILE_ROWS
from edgellm.kernels.staged import F32, I8, I32, Value, Vocabulary, staged

GROUP = 32  # weights that share an activation scale
LINE = 64  # bytes of a cache line


class _Groups:
    """Neighbouring groups of 32 weights of one row, unpacked from as many blocks as hold them."""

    def __init__(self, v: Vocabulary, fmt, block: Value, n_blocks: int) -> None:
        parts = [fmt.unpack(v, block + fmt.block_bytes * i) for i in range(n_blocks)]
        self.weights = [w for part in parts for w in part.weights]
        self.scales = v.concat(*(part.scales for part in parts))
        if parts[0].biases is not None:
            self.biases = v.concat(*(part.biases for part in parts))
        else:
            self.biases = self.scales * float(-fmt.zero)


def _blocks_per_step(fmt) -> int:
    """Blocks that a loop advances by: a superblock, or four small blocks."""
    return max(1, 4 * GROUP // fmt.block_size)


def _spread(v: Vocabulary, values: Value, lanes: int, times: int, first: int) -> Value:
    """Each of the lanes from `first` on, `times` times, until `lanes` are full."""
    return v.shuffle(values, values, [first + lane // times for lane in range(lanes)])


# --- decode: rows by one token -----------------------------------------------------------------------------


def _dot_rows(v: Vocabulary, fmt, n_rows: int, row: Value, row_bytes: Value, n_groups: Value,
              q: Value, d: Value, sums: Value, prefetch: Value, out: Value) -> None:
    """n_rows neighbouring rows by one token: the rows share each load of the input, and hide each other's waits."""
    lanes = max(v.isa.lanes, 8)
    per_block = fmt.block_size // GROUP
    step = _blocks_per_step(fmt)

    def advance(blocks: int, first: Value, count: Value, sums_so_far: list[Value]) -> list[Value]:
        groups = blocks * per_block
        n_scales = groups * GROUP // fmt.scale_group

        def body(i: Value, *carried: Value) -> list[Value]:
            group = first * per_block + i * groups
            offset = (first + i * blocks) * fmt.block_bytes
            x = [v.load(q + group * GROUP + part * 4 * lanes, I8, min(4 * lanes, groups * GROUP))
                 for part in range(max(1, groups * GROUP // (4 * lanes)))]
            x_scales = _spread(v, v.f32(d + group * 4, groups), n_scales, n_scales // groups, 0)
            x_sums = v.f32(sums + group * (4 * n_scales // groups), n_scales)
            results = []
            for r in range(n_rows):
                block = row + row_bytes * r + offset
                for line in range(0, blocks * fmt.block_bytes, LINE):
                    v.prefetch(block + prefetch + line)
                unpacked = _Groups(v, fmt, block, blocks)
                total, bias = carried[2 * r], carried[2 * r + 1]
                scales = unpacked.scales * x_scales
                per_part = max(1, len(unpacked.weights) // len(x))
                for part, xs in enumerate(x):
                    u = v.concat(*unpacked.weights[part * per_part : (part + 1) * per_part])
                    dots = v.dot_u8_s8(v.constant(0, I32, xs.n // 4), u, xs, fmt.max_u)
                    lane_scales = _spread(v, scales, dots.n, fmt.scale_group // 4, part * len(scales_of(part)))
                    total = _add_lanes(v, total, dots.to_f32() * lane_scales)
                bias = _add_lanes(v, bias, unpacked.biases * x_sums)
                results += [total, bias]
            return results

        def scales_of(part: int) -> range:
            return range(min(4 * lanes, groups * GROUP) // fmt.scale_group)

        return v.loop(count, sums_so_far, body)

    zero = v.constant(0.0, F32, lanes)
    n_blocks = n_groups / per_block
    n_steps = n_blocks / step
    totals = advance(step, v.constant(0, n_groups.element), n_steps, [zero] * (2 * n_rows))
    if step > 1:
        totals = advance(1, n_steps * step, n_blocks - n_steps * step, totals)
    for r in range(n_rows):
        v.store(out + 4 * r, (totals[2 * r] + totals[2 * r + 1]).sum())


def _add_lanes(v: Vocabulary, total: Value, part: Value) -> Value:
    """total + part, where part may be narrower or wider than total."""
    while part.n > total.n:
        part = part[: part.n // 2] + part[part.n // 2 :]
    if part.n < total.n:
        if part.n == 1:
            part = v.vector_of([part, *[v.constant(0.0, F32)] * (total.n - 1)])
        else:
            zeros = v.constant(0.0, F32, part.n)
            part = v.shuffle(part, zeros, [min(lane, part.n) for lane in range(total.n)])
    return total + part


def build_linear_decode(isa, fmt):
    """W [n_rows, n_cols] by few tokens: reads the weights once, as fast as memory gives them."""
    op_at = record_viewer(LINEAR)
    per_sum = fmt.scale_group
    wide = isa.decode_rows
    kinds = ["i64"] * 8

    @staged(isa, "void", *kinds)
    def dot_many(v, *args):
        _dot_rows(v, fmt, wide, *args)

    @staged(isa, "void", *kinds)
    def dot_one(v, *args):
        _dot_rows(v, fmt, 1, *args)

    def linear_decode(record, chunk, thread):
        op = op_at(record)
        n_groups = op.n_cols // 32
        n_sums = op.n_cols // per_sum
        sums = op.xq.sum32 if per_sum == 32 else op.xq.sum16
        end = min((chunk + 1) * op.chunk_rows, op.n_rows)
        for token in range(op.batch.n_tokens):
            q = op.xq.q + token * op.n_cols
            d = op.xq.d + token * n_groups * 4
            s = sums + token * n_sums * 4
            out = op.out + token * op.out_stride * 4
            row = chunk * op.chunk_rows
            while row + wide <= end:
                dot_many(op.weights + row * op.row_bytes, op.row_bytes, n_groups, q, d, s, op.prefetch, out + row * 4)
                row += wide
            while row < end:
                dot_one(op.weights + row * op.row_bytes, op.row_bytes, n_groups, q, d, s, op.prefetch, out + row * 4)
                row += 1

    return linear_decode


# --- prefill: a tile of 16 rows by many tokens -------------------------------------------------------------
#
# The tile lies in scratch memory, unpacked once for all tokens: for every group of 32 columns eight registers
# of 16 rows x 4 bytes, so that one multiply of bytes meets four columns of all 16 rows; behind them the scales
# and then the biases, 16 rows side by side.


def _unpack_half_tile(v: Vocabulary, fmt, weights: Value, row_bytes: Value, first: Value, last: Value,
                      n_groups: Value, tile: Value, lane: Value) -> None:
    """Unpack rows first to first + 7 (none beyond last) into the lanes from `lane` on of all registers."""
    per_block = fmt.block_size // GROUP
    scales_per_block = fmt.block_size // fmt.scale_group
    rows = [weights + row_bytes * v.minimum(first + r, last) for r in range(8)]
    scales_at = tile + n_groups * (TILE_ROWS * GROUP) + lane * 4
    biases_at = scales_at + n_groups * (GROUP // fmt.scale_group * TILE_ROWS * 4)

    def body(i: Value) -> list[Value]:
        unpacked = [_Groups(v, fmt, row + i * fmt.block_bytes, 1) for row in rows]
        for g in range(per_block):
            columns = v.transpose8([u.weights[g].bitcast(I32) for u in unpacked])
            at = tile + (i * per_block + g) * (TILE_ROWS * GROUP) + lane * 4
            for k, column in enumerate(columns):
                v.store(at + k * TILE_ROWS * 4, column)
        for s in range(scales_per_block):
            at = (i * scales_per_block + s) * (TILE_ROWS * 4)
            v.store(scales_at + at, v.vector_of([u.scales[s] for u in unpacked]))
            v.store(biases_at + at, v.vector_of([u.biases[s] for u in unpacked]))
        return []

    v.loop(n_groups / per_block, [], body)


def _tile_by_tokens(v: Vocabulary, fmt, n_tokens: int, tile: Value, n_groups: Value,
                    q: Value, d: Value, sums: Value, out: Value, out_stride: Value) -> None:
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
            for at in (scales_at, biases_at))
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
            tile_by_tokens(tile, n_groups, op.xq.q + token * op.n_cols, op.xq.d + token * n_groups * 4,
                           sums + token * n_sums * 4, op.out + (token * op.out_stride + first) * 4, op.out_stride)

    return linear_prefill
