"""y = W x in float32: for weights of any format by inputs that nobody has rounded.

Some rows of weights are dequantized into a tile, a piece of columns at a time, and meet all tokens; sums wait in the
output for the next piece. A lane holds a row, and a sum goes through the columns in their order, one fused multiply-add
after the other, whichever kernel makes it: so any number of tokens and threads gives the same bits.

For float weights there is a kernel for few tokens beside it, which needs no tile.
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.kernels.blocks import BlockReader, transpose_quarters
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import GROUP, readers, row_addresses
from edgellm.kernels.ops.prefetching import prefetch_address, prefetch_part
from edgellm.kernels.records import F32_TILE_COLS, LINEAR
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged
from edgellm.quants.floats import FloatFormat

STEP = 8  # columns of float weights unpacked together

# --- float weights: columns of eight rows ------------------------------------------------------------------


def _columns(v: Vocabulary, fmt, rows: list[Value], i: Value) -> list[Value]:
    """The i-th STEP columns of eight rows: a register for each column, a lane for each row."""
    return v.transpose8([fmt.load(v, row + i * (STEP * fmt.block_bytes), STEP) for row in rows])


def _column(v: Vocabulary, fmt, rows: list[Value], column: Value) -> Value:
    """One column of eight rows, where fewer than STEP are left."""
    return v.vector_of([fmt.load(v, row + column * fmt.block_bytes, 1) for row in rows])


def multiply_rows(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_cols: Value,
    x: Value,
    ahead: Value,
    out: Value,
    *,
    n_rows: int = 16,
) -> None:
    """n_rows rows from `first` on (none beyond last) by one token, column after column as the tile does it."""
    halves = [row_addresses(v, weights, row_bytes, first + 8 * half, last, 8) for half in range(n_rows // 8)]
    step_bytes = n_rows * STEP * fmt.block_bytes

    def body(i: Value, *totals: Value) -> list[Value]:
        prefetch_part(v, ahead + i * step_bytes, step_bytes)
        columns = [_columns(v, fmt, rows, i) for rows in halves]
        results = list(totals)
        for k in range(STEP):
            x_k = v.f32(x + (i * STEP + k) * 4)
            results = [v.fma(half[k], x_k, total) for half, total in zip(columns, results, strict=True)]
        return results

    def rest(i: Value, *totals: Value) -> list[Value]:
        column = n_cols / STEP * STEP + i
        x_k = v.f32(x + column * 4)
        return [v.fma(_column(v, fmt, rows, column), x_k, total) for rows, total in zip(halves, totals, strict=True)]

    totals = v.loop(n_cols / STEP, [v.constant(0.0, F32, 8)] * len(halves), body)
    totals = v.loop(n_cols - n_cols / STEP * STEP, totals, rest)
    for half, total in enumerate(totals):
        v.store(out + 32 * half, total)


def build_linear_f32_decode(isa, fmt):
    """W [n_rows, n_cols] of floats by few tokens: reads the weights once, as fast as memory gives them."""
    op_at = record_viewer(LINEAR)

    def of_rows(n_rows):
        @staged(isa, "void", *["i64"] * 8)
        def dot_rows(v, *args):
            multiply_rows(v, fmt, *args, n_rows=n_rows)

        return dot_rows

    dot_rows, dot_few_rows = of_rows(16), of_rows(8)

    def linear_f32_decode(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), 16):
            ahead = prefetch_address(op, chunk, thread, row)
            for token in range(op.batch.n_tokens):
                x = op.x + token * op.x_stride * 4
                out = op.out + (token * op.out_stride + row) * 4
                if op.n_rows - row > 8:
                    dot_rows(op.weights, op.row_bytes, row, op.n_rows - 1, op.n_cols, x, ahead, out)
                else:
                    dot_few_rows(op.weights, op.row_bytes, row, op.n_rows - 1, op.n_cols, x, ahead, out)

    return linear_f32_decode


# --- a tile: F32_TILE_COLS columns of some rows, a column after the other ----------------------------------


def unpack_floats(
    v: Vocabulary, fmt, weights: Value, row_bytes: Value, first: Value, last: Value, start: Value, n_cols: Value,
    tile: Value, column_bytes: Value,
) -> None:  # fmt: skip
    """n_cols columns from `start` on, of some rows (`_lanes`) from `first` on, none beyond last, to their lanes."""
    rows = row_addresses(v, weights + start * fmt.block_bytes, row_bytes, first, last, STEP)

    def eight(i: Value) -> None:
        for k, column in enumerate(_columns(v, fmt, rows, i)):
            v.store(tile + column_bytes * (i * STEP + k), column)

    def one(i: Value) -> None:
        column = n_cols / STEP * STEP + i
        v.store(tile + column_bytes * column, _column(v, fmt, rows, column))

    v.repeat(n_cols / STEP, eight)
    v.repeat(n_cols - n_cols / STEP * STEP, one)


def unpack_blocks(
    v: Vocabulary, fmt, weights: Value, row_bytes: Value, first: Value, last: Value, start: Value, n_cols: Value,
    tile: Value, column_bytes: Value,
) -> None:  # fmt: skip
    """The same of blocks; each weight is what `fmt.decode` says, to the bit."""
    rows = row_addresses(v, weights + start / fmt.block_size * fmt.block_bytes, row_bytes, first, last, v.isa.lanes)

    def put(column: Value, weights: list[Value]) -> None:
        for k, some in enumerate(weights):
            v.store(tile + column_bytes * (column + k), some)

    block_columns(v, fmt, rows, n_cols / fmt.block_size, put)


def block_columns(
    v: Vocabulary, fmt, rows: list[Value], n_blocks: Value, put: Callable[[Value, list[Value]], None]
) -> None:
    """put(first, columns) for all columns of some rows of blocks, GROUP at a time: one a register, a lane each row."""

    def block(i: Value) -> None:
        sets, all_rows = readers(v, fmt, [row + i * fmt.block_bytes for row in rows])
        scales, biases = _numbers_by_row(v, fmt, all_rows)
        for g in range(fmt.block_size // GROUP):
            halves = zip(*(v.halves(fmt.unpack(v, some, g).bitcast(I32)) for some in sets), strict=True)
            words = [word for half in halves for word in transpose_quarters(v, list(half))]
            columns = []
            for column in range(GROUP):
                byte = (words[column // 4] >> 8 * (column % 4)) & 255
                scale = (g * GROUP + column) // fmt.scale_group
                weight = (byte.to_f32() - float(fmt.zero)) * scales[scale]
                columns.append(weight if biases is None else weight + biases[scale])
            put(i * fmt.block_size + g * GROUP, columns)

    v.repeat(n_blocks, block)


def _numbers_by_row(v: Vocabulary, fmt, reader: BlockReader) -> tuple[list[Value], list[Value] | None]:
    """The scales of a block, each for all rows, and the biases where the format has some."""
    lanes = len(reader.addresses)
    numbers = fmt.unpack_scales(v, reader)
    scales, biases = (n and [n[at : at + lanes] for at in range(0, n.n, lanes)] for n in numbers)
    return scales, biases


def multiply_tile(
    v: Vocabulary, n_rows: int, n_tokens: int, tile: Value, n_cols: Value, is_first: Value, x: Value, x_stride: Value,
    out: Value, out_stride: Value,
) -> None:  # fmt: skip
    """out += tile by n_tokens tokens; the first piece of columns starts at 0."""
    lanes = v.isa.lanes
    parts = range(0, n_rows, lanes)
    places = [out + (out_stride * token + part) * 4 for token in range(n_tokens) for part in parts]
    fresh, zero = v.greater(is_first, v.like(0, is_first)), v.constant(0.0, F32, lanes)

    def body(k: Value, *totals: Value) -> list[Value]:
        column = [v.f32(tile + (k * n_rows + part) * 4, lanes) for part in parts]
        results = []
        for token in range(n_tokens):
            x_k = v.f32(x + (x_stride * token + k) * 4)
            results += [v.fma(register, x_k, totals[token * len(column) + i]) for i, register in enumerate(column)]
        return results

    totals = v.loop(n_cols, [v.select(fresh, zero, v.f32(place, lanes)) for place in places], body)
    for place, total in zip(places, totals, strict=True):
        v.store(place, total)


def tokens_at_once(isa, n_rows: int) -> int:
    """As many as leave registers for a column and an input."""
    n_parts, n_tokens = n_rows // isa.lanes, 1
    while 2 * n_tokens * n_parts + n_parts + 1 <= isa.n_registers:
        n_tokens *= 2
    return n_tokens


def build_linear_f32(isa, fmt):
    """W [n_rows, n_cols] by any number of tokens; chunk c is the rows from `isa.f32_tile_rows` c on."""
    op_at = record_viewer(LINEAR)
    is_float = isinstance(fmt, FloatFormat)
    all_rows, n_piece = isa.f32_tile_rows, F32_TILE_COLS
    at_once = tokens_at_once(isa, all_rows)
    lanes = STEP if is_float else isa.lanes  # rows that are unpacked together

    @staged(isa, "void", *["i64"] * 8)
    def unpack(v, *args):
        (unpack_floats if is_float else unpack_blocks)(v, fmt, *args)

    def of_tokens(n_rows, n_tokens):
        @staged(isa, "void", *["i64"] * 7)
        def by_tokens(v, *args):
            multiply_tile(v, n_rows, n_tokens, *args)

        return by_tokens

    by_some, by_one = of_tokens(all_rows, at_once), of_tokens(all_rows, 1)
    narrow_by_some, narrow_by_one = of_tokens(16, at_once), of_tokens(16, 1)

    def linear_f32(record, chunk, thread):
        op = op_at(record)
        tile = op.scratch + thread * op.scratch_bytes
        first = chunk * all_rows
        # Rows of outputs are padded to 16: the last tile must not be wider than what is left.
        n_rows = min(all_rows, (op.n_rows - first + 15) // 16 * 16)
        for start in range(0, op.n_cols, n_piece):
            n_cols = min(n_piece, op.n_cols - start)
            is_first = 1 if start == 0 else 0
            for lane in range(0, n_rows, lanes):
                to = tile + lane * 4
                unpack(op.weights, op.row_bytes, first + lane, op.n_rows - 1, start, n_cols, to, n_rows * 4)
            token = 0
            while token < op.batch.n_tokens:
                x = op.x + (token * op.x_stride + start) * 4
                out = op.out + (token * op.out_stride + first) * 4
                # The last tokens may reach beyond the batch: the buffers are that long, and nobody reads those rows.
                are_some = op.batch.n_tokens - token > 2
                if n_rows == 16:
                    if are_some:
                        narrow_by_some(tile, n_cols, is_first, x, op.x_stride, out, op.out_stride)
                    else:
                        narrow_by_one(tile, n_cols, is_first, x, op.x_stride, out, op.out_stride)
                elif are_some:
                    by_some(tile, n_cols, is_first, x, op.x_stride, out, op.out_stride)
                else:
                    by_one(tile, n_cols, is_first, x, op.x_stride, out, op.out_stride)
                token += at_once if are_some else 1

    return linear_f32
