"""W x and x W in bfloat16 on AMX (see `isa/amx.py`): weights of any blocks, inputs and sums of training.

Weights are dequantized and rounded to bfloat16, inputs come rounded, products and sums are float32. A chunk's weights
are unpacked once, into words of two, and meet all tokens. A sum goes through its numbers in one order, so any number
of tokens and threads gives the same bits.
"""

from __future__ import annotations

from edgellm.kernels.gradient_records import (
    AMX_COLS,
    AMX_ROWS,
    AMX_SUM_ROWS,
    LINEAR_TRANSPOSED,
    amx_sum_cols,
)
from edgellm.kernels.isa import amx
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.bf16 import nearest_bf16
from edgellm.kernels.ops.dequantize import dequantize_row
from edgellm.kernels.ops.linear import row_addresses
from edgellm.kernels.ops.linear_f32 import block_columns
from edgellm.kernels.records import AMX_CONFIG_BYTES, LINEAR
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

TOGETHER = 2  # registers of tokens by registers of weights whose sums are made at once: four of sums, four of inputs


def _word(v: Vocabulary, low: Value, high: Value) -> Value:
    """Two numbers in each lane, as bfloat16."""
    return nearest_bf16(v, low) | (nearest_bf16(v, high) << 16)


def _add_products(
    v: Vocabulary, x: Value, x_bytes: Value, n_tokens: Value, words: Value, word_bytes: Value, n_steps: Value,
    out: Value, out_bytes: Value, n_cols: Value, is_first: Value,
) -> None:  # fmt: skip
    """out [n_tokens, n_cols] += x by unpacked words; the first piece of a sum starts at 0.

    Columns are 16 or a multiple. Tokens need not be: buffers are long enough, and nobody reads those rows.
    """

    def some(token: Value, n_a: int, column: Value, n_b: int) -> None:
        x_rows = [x + (token + amx.ROWS * i) * x_bytes for i in range(n_a)]
        sums = [
            (i * n_b + j, out + (token + amx.ROWS * i) * out_bytes + (column + amx.WORDS * j) * 4)
            for i in range(n_a)
            for j in range(n_b)
        ]

        def begin(_: Value) -> None:
            for register, _place in sums:
                amx.zero(v, register)

        def go_on(_: Value) -> None:
            for register, place in sums:
                amx.load(v, register, place, out_bytes)

        def step(k: Value) -> None:
            of_words = words + k * amx.ROWS * word_bytes + column * 4
            for j in range(n_b):
                amx.load(v, 6 + j, of_words + amx.ROW_BYTES * j, word_bytes)
            for i in range(n_a):
                amx.load(v, 4 + i, x_rows[i] + k * amx.ROW_BYTES, x_bytes)
                for j in range(n_b):
                    amx.add_products(v, i * n_b + j, 4 + i, 6 + j)

        v.repeat(is_first, begin)
        v.repeat(v.like(1, is_first) - is_first, go_on)
        v.repeat(n_steps, step)
        for register, place in sums:
            amx.store(v, register, place, out_bytes)

    def tokens(column: Value, n_b: int) -> None:
        n_blocks = (n_tokens + (amx.ROWS - 1)) / amx.ROWS
        v.repeat(n_blocks / TOGETHER, lambda i: some(i * (TOGETHER * amx.ROWS), TOGETHER, column, n_b))
        v.repeat(n_blocks & 1, lambda _: some((n_blocks - 1) * amx.ROWS, 1, column, n_b))

    n_parts = n_cols / amx.WORDS
    v.repeat(n_parts / TOGETHER, lambda i: tokens(i * (TOGETHER * amx.WORDS), TOGETHER))
    v.repeat(n_parts & 1, lambda _: tokens((n_parts - 1) * amx.WORDS, 1))


def _common(isa):
    """The functions of both directions: begin, products, end."""

    @staged(isa, "void", "i64")
    def begin(v, scratch):
        amx.configure(v, scratch)

    @staged(isa, "void", *["i64"] * 10)
    def products(v, *args):
        _add_products(v, *args)

    @staged(isa, "void")
    def end(v):
        amx.release(v)

    return begin, products, end


def build_linear_bf16(isa, fmt):
    """W [n_rows, n_cols] by any number of tokens; chunk c is the rows from AMX_ROWS c on."""
    op_at = record_viewer(LINEAR)
    begin, products, end = _common(isa)
    lanes, word_bytes, step = isa.lanes, 4 * AMX_ROWS, amx.STEP
    block_size, block_bytes = fmt.block_size, fmt.block_bytes

    @staged(isa, "void", *["i64"] * 6)
    def unpack(v, weights, row_bytes, first, last, n_blocks, words):
        rows = row_addresses(v, weights, row_bytes, first, last, lanes)

        def put(column: Value, weights: list[Value]) -> None:
            to = words + column / 2 * word_bytes
            for pair in range(len(weights) // 2):
                v.store(to + word_bytes * pair, _word(v, *weights[2 * pair : 2 * pair + 2]))

        block_columns(v, fmt, rows, n_blocks, put)

    def linear_bf16(record, chunk, thread):
        op = op_at(record)
        scratch = op.scratch + thread * op.scratch_bytes
        words = scratch + AMX_CONFIG_BYTES
        first = chunk * AMX_ROWS
        # Rows of outputs are padded to 16: the last chunk must not be wider than what is left.
        n_rows = min(AMX_ROWS, (op.n_rows - first + 15) // 16 * 16)
        begin(scratch)
        for start in range(0, op.n_cols, AMX_COLS):
            n_cols = min(AMX_COLS, op.n_cols - start)
            weights = op.weights + start // block_size * block_bytes
            for lane in range(0, n_rows, lanes):
                n_blocks = n_cols // block_size
                unpack(weights, op.row_bytes, first + lane, op.n_rows - 1, n_blocks, words + lane * 4)
            products(
                op.x + start * 2, op.x_stride * 4, op.batch.n_tokens, words, word_bytes, n_cols // step,
                op.out + first * 4, op.out_stride * 4, n_rows, 1 if start == 0 else 0,
            )  # fmt: skip
        end()

    return linear_bf16


def build_linear_bf16_transposed(isa, fmt):
    """W [n_rows, n_cols] by rows [n_tokens, n_rows], a multiple of 32; a chunk is amx_sum_cols(fmt) columns."""
    op_at = record_viewer(LINEAR_TRANSPOSED)
    begin, products, end = _common(isa)
    chunk_cols = amx_sum_cols(fmt.block_size)
    word_bytes, step = 4 * chunk_cols, amx.STEP
    block_size, block_bytes = fmt.block_size, fmt.block_bytes

    @staged(isa, "void", *["i64"] * 5)
    def unpack(v, weights, row_bytes, n_pairs, n_cols, words):
        def pair(i: Value) -> None:
            row, to = weights + i * 2 * row_bytes, words + i * word_bytes

            def second(column: Value, some: Value) -> None:
                place = to + column * 4
                v.store(place, _word(v, v.load(place, F32, some.n), some))

            dequantize_row(v, fmt, row, n_cols, lambda column, some: v.store(to + column * 4, some))
            dequantize_row(v, fmt, row + row_bytes, n_cols, second)

        v.repeat(n_pairs, pair)

    def linear_bf16_transposed(record, chunk, thread):
        op = op_at(record)
        scratch = op.scratch + thread * op.scratch_bytes
        words = scratch + AMX_CONFIG_BYTES
        column = chunk * chunk_cols
        n_cols = min(chunk_cols, op.n_cols - column)
        weights = op.weights + column // block_size * block_bytes
        begin(scratch)
        for row in range(0, op.n_rows, AMX_SUM_ROWS):
            n_rows = min(AMX_SUM_ROWS, op.n_rows - row)
            unpack(weights + row * op.row_bytes, op.row_bytes, n_rows // 2, n_cols, words)
            products(
                op.x + row * 2, op.x_stride * 4, op.batch.n_tokens, words, word_bytes, n_rows // step,
                op.out + column * 4, op.out_stride * 4, n_cols, 1 if row == 0 else 0,
            )  # fmt: skip
        end()

    return linear_bf16_transposed
