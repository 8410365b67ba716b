"""y = W x for float weights (F32, F16, BF16): the same two shapes of work as `linear.py`, in float32."""

from __future__ import annotations

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.linear import needed_soon, prefetch_part, row_addresses
from edgellm.kernels.records import LINEAR, TILE_ROWS
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

STEP = 8  # columns unpacked together


def _columns(v: Vocabulary, fmt, rows: list[Value], i: Value) -> list[Value]:
    """The i-th STEP columns of eight rows: a register for each column, a lane for each row."""
    return v.transpose8([fmt.load(v, row + i * (STEP * fmt.block_bytes), STEP) for row in rows])


def _column(v: Vocabulary, fmt, rows: list[Value], column: Value) -> Value:
    """One column of eight rows, where fewer than STEP are left."""
    return v.vector_of([fmt.load(v, row + column * fmt.block_bytes, 1) for row in rows])


def _dot_rows(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_cols: Value,
    x: Value,
    soon: Value,
    out: Value,
) -> None:
    """Rows first to first + 15 (none beyond last) by one token, column after column as the tile does it."""
    halves = [row_addresses(v, weights, row_bytes, first + 8 * half, last, 8) for half in range(2)]
    step_bytes = 16 * STEP * fmt.block_bytes

    def body(i: Value, *totals: Value) -> list[Value]:
        prefetch_part(v, soon + i * step_bytes, step_bytes)
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

    totals = v.loop(n_cols / STEP, [v.constant(0.0, F32, 8)] * 2, body)
    totals = v.loop(n_cols - n_cols / STEP * STEP, totals, rest)
    for half, total in enumerate(totals):
        v.store(out + 32 * half, total)


def build_linear_decode(isa, fmt):
    op_at = record_viewer(LINEAR)

    @staged(isa, "void", *["i64"] * 8)
    def dot_rows(v, *args):
        _dot_rows(v, fmt, *args)

    def linear_decode(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_rows
        for row in range(first, min(first + op.chunk_rows, op.n_rows), 16):
            soon = needed_soon(op, chunk, thread, row)
            for token in range(op.batch.n_tokens):
                x = op.x + token * op.x_stride * 4
                out = op.out + (token * op.out_stride + row) * 4
                dot_rows(op.weights, op.row_bytes, row, op.n_rows - 1, op.n_cols, x, soon, out)

    return linear_decode


def _unpack_half_tile(
    v: Vocabulary,
    fmt,
    weights: Value,
    row_bytes: Value,
    first: Value,
    last: Value,
    n_cols: Value,
    tile: Value,
    lane: Value,
) -> None:
    """Rows first to first + 7 (none beyond last), a column after the other, into the lanes from `lane` on."""
    rows = row_addresses(v, weights, row_bytes, first, last, 8)
    column_bytes = TILE_ROWS * 4

    def body(i: Value) -> list[Value]:
        for k, column in enumerate(_columns(v, fmt, rows, i)):
            v.store(tile + (i * STEP + k) * column_bytes + lane * 4, column)
        return []

    def rest(i: Value) -> list[Value]:
        column = n_cols / STEP * STEP + i
        v.store(tile + column * column_bytes + lane * 4, _column(v, fmt, rows, column))
        return []

    v.loop(n_cols / STEP, [], body)
    v.loop(n_cols - n_cols / STEP * STEP, [], rest)


def _tile_by_tokens(
    v: Vocabulary,
    n_tokens: int,
    tile: Value,
    n_cols: Value,
    x: Value,
    x_stride: Value,
    out: Value,
    out_stride: Value,
) -> None:
    def body(k: Value, *totals: Value) -> list[Value]:
        column = v.f32(tile + k * (TILE_ROWS * 4), TILE_ROWS)
        return [v.fma(column, v.f32(x + (x_stride * token + k) * 4), total) for token, total in enumerate(totals)]

    totals = v.loop(n_cols, [v.constant(0.0, F32, TILE_ROWS)] * n_tokens, body)
    for token, total in enumerate(totals):
        v.store(out + out_stride * (4 * token), total)


def build_linear_prefill(isa, fmt):
    op_at = record_viewer(LINEAR)
    at_once = isa.tile_tokens

    @staged(isa, "void", *["i64"] * 7)
    def unpack_half_tile(v, *args):
        _unpack_half_tile(v, fmt, *args)

    @staged(isa, "void", *["i64"] * 6)
    def tile_by_tokens(v, *args):
        _tile_by_tokens(v, at_once, *args)

    def linear_prefill(record, chunk, thread):
        op = op_at(record)
        tile = op.scratch + thread * op.scratch_bytes
        first = chunk * 16
        for half in range(2):
            unpack_half_tile(op.weights, op.row_bytes, first + 8 * half, op.n_rows - 1, op.n_cols, tile, 8 * half)
        for token in range(0, op.batch.n_tokens, at_once):
            tile_by_tokens(
                tile,
                op.n_cols,
                op.x + token * op.x_stride * 4,
                op.x_stride,
                op.out + (token * op.out_stride + first) * 4,
                op.out_stride,
            )

    return linear_prefill
