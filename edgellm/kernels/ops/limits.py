"""What this machine can do at most: bytes read from memory, and bytes multiplied in registers.

Both do nothing useful, as fast as they can; what they compute keeps the compiler from leaving it out.
`edgellm bench` compares a model's speed with theirs.
"""

from __future__ import annotations

from functools import partial

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.prefetching import PAGE, prefetch_page_starts
from edgellm.kernels.records import MULTIPLY_LIMIT, READ_LIMIT, S_PER_STEP, S_REGISTERS, U_REGISTERS
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import I8, I32, I64, Value, Vocabulary, staged

LINES_PER_STEP = 8


def _sum_words(v: Vocabulary, address: Value, n_bytes: Value, ahead: Value, *, is_asking: bool) -> Value:
    """The 64-bit words of some memory, added; every line that is so far ahead is asked for, or none."""
    lanes = v.isa.lanes // 2
    step = LINES_PER_STEP * LINE

    def body(i: Value, *sums: Value) -> list[Value]:
        results = list(sums)
        lines = [address + (i * step + line * LINE) for line in range(LINES_PER_STEP)]
        if is_asking:
            for at in lines:
                v.prefetch(at + ahead, v.isa.stream_level)
        for line, at in enumerate(lines):
            for part in range(0, LINE, lanes * 8):
                results[line % 4] += v.load(at + part, I64, lanes)
        return results

    sums = v.loop(n_bytes / step, [v.constant(0, I64, lanes)] * 4, body)
    return (sums[0] + sums[1] + (sums[2] + sums[3])).sum()


def build_read_limit(isa):
    """Chunk c is the c-th chunk_bytes of the memory."""
    op_at = record_viewer(READ_LIMIT)
    asking, silent = (
        staged(isa, "i64", "i64", "i64", "i64")(partial(_sum_words, is_asking=is_asking)) for is_asking in (True, False)
    )
    ask_for = staged(isa, "void", "i64")(partial(prefetch_page_starts, n_bytes=PAGE))
    store = memory(isa).store_i64

    def read_limit(record, chunk, thread):
        op = op_at(record)
        first, total = op.memory + chunk * op.chunk_bytes, 0
        for page in range(first, first + op.chunk_bytes, 4096):
            if op.page_lines * 64 >= 4096:
                total += asking(page, 4096, op.prefetch)
            else:
                if op.page_lines > 0:
                    ask_for(page + op.prefetch)
                total += silent(page, 4096, 0)
        store(op.sums + chunk * 8, total)

    return read_limit


def _multiply(v: Vocabulary, u: Value, s: Value, n_steps: Value) -> Value:
    """The sum of all products of the u with the s of every step.

    New signed bytes in every step: of the same ones, a compiler would make the products once for all steps.
    """
    n_bytes = v.isa.lanes * 4
    us = [v.load(u + k * n_bytes, I8, n_bytes) for k in range(U_REGISTERS)]

    def body(i: Value, *sums: Value) -> list[Value]:
        at = s + (i & (S_REGISTERS // S_PER_STEP - 1)) * (S_PER_STEP * n_bytes)
        ss = [v.load(at + k * n_bytes, I8, n_bytes) for k in range(S_PER_STEP)]
        return [v.dot_u8_s8(total, us[k // S_PER_STEP], ss[k % S_PER_STEP], 127) for k, total in enumerate(sums)]

    first, *others = v.loop(n_steps, [v.constant(0, I32, v.isa.lanes)] * (U_REGISTERS * S_PER_STEP), body)
    for total in others:
        first = first + total
    return first.sum().sext(I64)


def build_multiply_limit(isa):
    """Every chunk does the same."""
    op_at = record_viewer(MULTIPLY_LIMIT)
    multiply = staged(isa, "i64", "i64", "i64", "i64")(_multiply)
    store = memory(isa).store_i64

    def multiply_limit(record, chunk, thread):
        op = op_at(record)
        store(op.sums + chunk * 8, multiply(op.u, op.s, op.n_steps))

    return multiply_limit
