"""Dropout (Srivastava et al., 2014): numbers that chance drops become 0, and the others make up for them.

Chance depends on a seed, on the token's place in the batch and on the column, and on nothing that went before: so the
same op makes the gradient, and threads and chunks change nothing. The seed and the token make the token-th number of
SplitMix64 (Steele, Lea and Flood, 2014), whose halves are the row's keys. A column is mixed with one and with the other
by lowbias32 (Wellons, 2018).
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import DROPOUT, ROW_ALIGN
from edgellm.kernels.staged import I32, Value, Vocabulary, staged

LANES = ROW_ALIGN


def _signed(bits: int, n_bits: int) -> int:
    return bits - (bits >> (n_bits - 1) << n_bits)


def _mixed(x: Value, shifts: tuple[int, int, int], factors: tuple[int, int]) -> Value:
    """Every bit of x in every bit of the result."""
    first, second, third = shifts
    for shift, factor in ((first, factors[0]), (second, factors[1])):
        x = (x ^ (x >> shift)) * _signed(factor, x.element.width)
    return x ^ (x >> third)


def _split_mix_64(seed: Value, index: Value) -> Value:
    """Number `index`, from 0 on, of the generator with that seed."""
    state = seed + (index + 1) * _signed(0x9E3779B97F4A7C15, 64)
    return _mixed(state, (30, 27, 31), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _low_bias_32(x: Value) -> Value:
    return _mixed(x, (16, 15, 16), (0x7FEB352D, 0x846CA68B))


def _drop_row(
    v: Vocabulary, x: Value, out: Value, n_steps: Value, seed: Value, token: Value, limit: Value, scale: Value
) -> None:
    """What is below the limit, as a signed word, is dropped."""
    keys = _split_mix_64(seed, token)
    first, second = keys.trunc(I32), (keys >> 32).trunc(I32)
    lanes = v.constant(list(range(LANES)), I32)

    def step(i: Value) -> None:
        columns = lanes + (i * LANES).trunc(I32)
        word = _low_bias_32(_low_bias_32(columns ^ first) ^ second)
        numbers = v.f32(x + i * (4 * LANES), LANES)
        is_dropped = v.greater(v.like(limit.trunc(I32), word), word)
        v.store(out + i * (4 * LANES), v.select(is_dropped, v.like(0.0, numbers), numbers * scale))

    v.repeat(n_steps, step)


def build_dropout(isa):
    """out = x / (1 - p), or 0 with probability p; out may be x. While nothing is dropped, out = x."""
    op_at = record_viewer(DROPOUT)
    load_i64 = memory(isa).load_i64
    drop_row = staged(isa, "void", *["i64"] * 6, "f32")(_drop_row)

    @staged(isa, "void", "i64", "i64", "i64")
    def copy(v, x, out, n):
        v.elements(n, LANES, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes)))

    def dropout(record, chunk, thread):
        op = op_at(record)
        limit = int(op.p * 2.0**32) - 2**31
        scale = np.float32(1 / (1 - op.p))
        seed, is_on = load_i64(op.chance), load_i64(op.chance + 8)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            if is_on:
                drop_row(op.x + at, op.out + at, op.stride // LANES, seed, token, limit, scale)
            elif op.out != op.x:
                copy(op.x + at, op.out + at, op.stride)

    return dropout
