"""Attention over a paged cache, with the softmax computed online (Milakov and Gimelshein, 2018; FlashAttention).

The cache of a layer is an array of blocks of KV_BLOCK tokens in float16. A block holds, for every key-value
head, first the keys as [head_dim, KV_BLOCK] and then, behind the keys of all heads, the values as
[KV_BLOCK, head_dim]: so a register holds one dimension of several keys, or several dimensions of one value,
and neither product needs sums across a register.

The query heads that share a key-value head ("group") and several tokens form the rows of one tile: every key
and value loaded serves all of them. For each row stand in scratch memory the query, the scores against one
block, and the result so far: the largest score (m), the sum of exponentials (l) and the weighted sum of values.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import (
    ATTENTION,
    ATTENTION_MERGE,
    ATTENTION_TASK,
    KV_APPEND,
    KV_BLOCK,
    MERGE_TASK,
    SPAN_TOKENS,
)
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged

ROWS = 4  # of a tile computed together
LOWEST = -1e30  # below every score, yet finite: the difference of two of them is 0, not NaN


def _widen(v: Vocabulary, halves: Value, floats: Value, n: Value) -> None:
    """float16 in the cache to float32 in scratch memory: once for all rows of a tile."""
    v.elements(n, 16, lambda i, lanes: v.store(floats + i * 4, v.half(halves + i * 2, lanes)))


def _number(v: Vocabulary, wide: bool, base: Value, index: Value, lanes: int) -> Value:
    """Neighbouring numbers of a block, which is in the cache or was widened."""
    return v.f32(base + index * 4, lanes) if wide else v.half(base + index * 2, lanes)


def _scores(
    v: Vocabulary, query: Value, head_dim: Value, keys: Value, scores: Value, *, n_rows: int, wide: bool
) -> None:
    """scores[r, token] = query[r] . keys[:, token] for the tokens of a block, four registers of them at a time."""
    lanes = v.isa.lanes
    for first in range(0, KV_BLOCK, 4 * lanes):

        def body(i: Value, *sums: Value, first=first) -> list[Value]:
            key = [_number(v, wide, keys, i * KV_BLOCK + (first + lanes * c), lanes) for c in range(4)]
            results = []
            for r in range(n_rows):
                x = v.f32(query + (head_dim * r + i) * 4)
                results += [v.fma(key[c], x, sums[4 * r + c]) for c in range(4)]
            return results

        sums = v.loop(head_dim, [v.constant(0.0, F32, lanes)] * (4 * n_rows), body)
        for r in range(n_rows):
            for c in range(4):
                v.store(scores + (r * KV_BLOCK + first + lanes * c) * 4, sums[4 * r + c])


def _softmax(v: Vocabulary, scores: Value, begin: Value, end: Value, m: Value, denominator: Value) -> Value:
    """Scores of tokens begin to end - 1 become exponentials, all others 0. Returns what to multiply old sums by."""
    lanes = v.isa.lanes
    parts = KV_BLOCK // lanes
    index = v.constant(list(range(lanes)), I32)
    begin, end = (v.splat(x.trunc(I32), lanes) for x in (begin, end))
    lowest = v.constant(LOWEST, F32, lanes)
    zero = v.constant(0.0, F32, lanes)
    inside, values = [], []
    largest = lowest
    for part in range(parts):
        token = index + part * lanes
        inside.append(_and(v, v.greater(token + 1, begin), v.greater(end, token)))
        values.append(v.select(inside[-1], v.f32(scores + part * lanes * 4, lanes), lowest))
        largest = v.maximum(largest, values[-1])
    old = v.f32(m)
    new = v.maximum(old, largest.max())
    total = zero
    for part, value in enumerate(values):
        weight = v.select(inside[part], v.exp(value - new), zero)
        v.store(scores + part * lanes * 4, weight)
        total = total + weight
    correction = v.exp(old - new)
    v.store(m, new)
    v.store(denominator, v.fma(v.f32(denominator), correction, total.sum()))
    return correction


def _and(v: Vocabulary, a: Value, b: Value) -> Value:
    return Value(v, v.builder.and_(a.llvm, b.llvm))


def _weighted_values(
    v: Vocabulary,
    weights: Value,
    begin: Value,
    end: Value,
    values: Value,
    head_dim: Value,
    first: Value,
    corrections: Value,
    out: Value,
    *,
    n_rows: int,
    wide: bool,
    n_parts: int,
) -> None:
    """out[r] = out[r] * correction[r] + sum over tokens of weights[r, token] * values[token], some dimensions of it."""
    lanes = v.isa.lanes
    row_bytes = (head_dim + 2) * 4
    sums = []
    for r in range(n_rows):
        correction = v.f32(corrections + r * 4)
        sums += [v.f32(out + row_bytes * r + (first + c * lanes) * 4, lanes) * correction for c in range(n_parts)]

    def body(i: Value, *sums: Value) -> list[Value]:
        token = begin + i
        at = token * head_dim + first
        value = [_number(v, wide, values, at + c * lanes, lanes) for c in range(n_parts)]
        results = []
        for r in range(n_rows):
            weight = v.f32(weights + (token + r * KV_BLOCK) * 4)
            results += [v.fma(value[c], weight, sums[n_parts * r + c]) for c in range(n_parts)]
        return results

    sums = v.loop(end - begin, sums, body)
    for r in range(n_rows):
        for c in range(n_parts):
            v.store(out + row_bytes * r + (first + c * lanes) * 4, sums[n_parts * r + c])


def _merge(v: Vocabulary, part: Value, total: Value, n_rows: Value, head_dim: Value) -> None:
    """Add a partial result to another, row by row: both weighted for the larger of their largest scores.

    A result is, for every row, m and l and then head_dim sums; `total` may have seen nothing yet.
    """
    lanes = 16
    row_bytes = (head_dim + 2) * 4

    def merge_row(r: Value) -> list[Value]:
        a, b = total + row_bytes * r, part + row_bytes * r
        m_a, m_b = v.f32(a), v.f32(b)
        m = v.maximum(m_a, m_b)
        by_a, by_b = v.exp(m_a - m), v.exp(m_b - m)
        v.store(a, m)
        v.store(a + 4, v.fma(v.f32(b + 4), by_b, v.f32(a + 4) * by_a))

        def merge_sums(i: Value) -> list[Value]:
            at = i * (4 * lanes) + 8
            v.store(a + at, v.fma(v.f32(b + at, lanes), by_b, v.f32(a + at, lanes) * by_a))
            return []

        v.loop(head_dim / lanes, [], merge_sums)
        return []

    v.loop(n_rows, [], merge_row)


def _scale_copy(v: Vocabulary, x: Value, out: Value, n: Value, factor: Value) -> None:
    v.elements(n, 16, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * factor))


def _clear(v: Vocabulary, rows: Value, n_rows: Value, head_dim: Value) -> None:
    """Results that have seen nothing: l and the sums are 0, and m is below every score."""

    def clear_row(r: Value) -> list[Value]:
        row = rows + (head_dim + 2) * 4 * r
        v.store(row, v.constant([LOWEST, 0.0], F32))

        def clear_sums(i: Value) -> list[Value]:
            v.store(row + i * 64 + 8, v.constant(0.0, F32, 16))
            return []

        v.loop(head_dim / 16, [], clear_sums)
        return []

    v.loop(n_rows, [], clear_row)


def build_attention(isa):
    """Chunk c is key-value head c % n_kv_heads of task c // n_kv_heads.

    Positions are taken in spans of SPAN_TOKENS, each with a result of its own, which is then merged into the
    total: a long past gives the same bits whether one task sees all of it or every span is another task.
    """
    op_at, task_at = record_viewer(ATTENTION), record_viewer(ATTENTION_TASK)
    m = memory(isa)
    load, store, load_i32 = m.load_f32, m.store_f32, m.load_i32
    task_bytes = ATTENTION_TASK.dtype.itemsize
    lanes = isa.lanes
    score_wide, score_rows, score_row = (
        staged(isa, "void", *["i64"] * 4)(partial(_scores, n_rows=n, wide=wide))
        for n, wide in ((ROWS, True), (ROWS, False), (1, False))
    )
    weigh_wide, weigh_rows, weigh_row, weigh_rows_narrow, weigh_row_narrow = (
        staged(isa, "void", *["i64"] * 8)(partial(_weighted_values, n_rows=n, wide=wide, n_parts=n_parts))
        for n, wide, n_parts in (
            (ROWS, True, 4),
            (ROWS, False, 4),
            (1, False, 4),
            (ROWS, False, 1),
            (1, False, 1),
        )
    )
    widen = staged(isa, "void", *["i64"] * 3)(_widen)
    scale_copy = staged(isa, "void", "i64", "i64", "i64", "f32")(_scale_copy)
    softmax = staged(isa, "f32", *["i64"] * 5)(_softmax)
    merge = staged(isa, "void", *["i64"] * 4)(_merge)
    clear = staged(isa, "void", *["i64"] * 3)(_clear)

    @njit(error_model="numpy")
    def attend_block(op, task, kv_head, block, first, end, query, result, scores, corrections, wide):
        """One block of the cache, of which positions first to end - 1 count, for all rows of the tile."""
        head_dim, group = op.head_dim, op.group
        n_rows = task.n_tokens * group
        row_bytes = (head_dim + 2) * 4
        n_numbers = KV_BLOCK * head_dim
        position = block * KV_BLOCK
        keys = op.cache + load_i32(task.block_table + block * 4) * op.block_bytes + kv_head * n_numbers * 2
        values = keys + op.n_kv_heads * n_numbers * 2
        begin_here, end_here = max(first - position, 0), min(end - position, KV_BLOCK)
        is_tall = n_rows > ROWS
        if is_tall:
            widen(keys, wide, n_numbers)
            widen(values, wide + n_numbers * 4, n_numbers)
        for row in range(0, n_rows, ROWS):
            at, to = query + row * head_dim * 4, scores + row * KV_BLOCK * 4
            if is_tall:
                score_wide(at, head_dim, wide, to)
            elif n_rows > 1:
                score_rows(at, head_dim, keys, to)
            else:
                score_row(at, head_dim, keys, to)
        for row in range(n_rows):
            here = task.position + row // group - position
            m_at = result + row * row_bytes
            begin = max(begin_here, here - op.window + 1)
            store(
                corrections + row * 4,
                softmax(scores + row * KV_BLOCK * 4, begin, min(end_here, here + 1), m_at, m_at + 4),
            )
        for row in range(0, n_rows, ROWS):
            weights, to, by = scores + row * KV_BLOCK * 4, result + row * row_bytes + 8, corrections + row * 4
            i = 0
            while i + 4 * lanes <= head_dim:
                if is_tall:
                    weigh_wide(weights, begin_here, end_here, wide + n_numbers * 4, head_dim, i, by, to)
                elif n_rows > 1:
                    weigh_rows(weights, begin_here, end_here, values, head_dim, i, by, to)
                else:
                    weigh_row(weights, begin_here, end_here, values, head_dim, i, by, to)
                i += 4 * lanes
            while i < head_dim:
                if n_rows > 1:
                    weigh_rows_narrow(weights, begin_here, end_here, values, head_dim, i, by, to)
                else:
                    weigh_row_narrow(weights, begin_here, end_here, values, head_dim, i, by, to)
                i += lanes

    def attention(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk // op.n_kv_heads * task_bytes)
        kv_head = chunk % op.n_kv_heads
        head_dim, group = op.head_dim, op.group
        n_rows = task.n_tokens * group
        padded = (n_rows + ROWS - 1) // ROWS * ROWS
        row_bytes = (head_dim + 2) * 4

        query = op.scratch + thread * op.scratch_bytes
        result = query + padded * head_dim * 4
        total = result + padded * row_bytes
        scores = total + padded * row_bytes
        corrections = scores + padded * KV_BLOCK * 4
        wide = corrections + padded * 4
        for row in range(padded):  # rows that fill up the last four repeat the last one; nobody reads their results
            store(corrections + row * 4, np.float32(0))
            used = min(row, n_rows - 1)
            x = op.q + ((task.token + used // group) * op.q_stride + (kv_head * group + used % group) * head_dim) * 4
            scale_copy(x, query + row * head_dim * 4, head_dim, np.float32(op.scale))

        # All positions that any token of the slice looks at; what single tokens must not see, softmax masks.
        first = max(task.kv_begin, task.position - op.window + 1)
        end = min(task.kv_end, task.position + task.n_tokens)
        clear(total, n_rows, head_dim)
        for span in range(first // SPAN_TOKENS, (end + SPAN_TOKENS - 1) // SPAN_TOKENS):
            clear(result, padded, head_dim)
            begin_span, end_span = max(first, span * SPAN_TOKENS), min(end, (span + 1) * SPAN_TOKENS)
            for block in range(begin_span // KV_BLOCK, (end_span + KV_BLOCK - 1) // KV_BLOCK):
                attend_block(op, task, kv_head, block, begin_span, end_span, query, result, scores, corrections, wide)
            if task.slot < 0:
                merge(result, total, n_rows, head_dim)

        if task.slot >= 0:  # a task of a single span: others will merge it
            to = op.partial + (task.slot * op.n_kv_heads + kv_head) * group * row_bytes
            scale_copy(result, to, group * (head_dim + 2), np.float32(1))
            return
        for row in range(n_rows):
            sums = total + row * row_bytes + 8
            out = (
                op.out + ((task.token + row // group) * op.out_stride + (kv_head * group + row % group) * head_dim) * 4
            )
            scale_copy(sums, out, head_dim, np.float32(1) / load(sums - 4))

    return attention


def build_attention_merge(isa):
    """Put the partial results of a token together, in order; chunk c is the c-th token that was split."""
    op_at, task_at = record_viewer(ATTENTION_MERGE), record_viewer(MERGE_TASK)
    load = memory(isa).load_f32
    task_bytes = MERGE_TASK.dtype.itemsize
    scale_copy = staged(isa, "void", "i64", "i64", "i64", "f32")(_scale_copy)
    merge = staged(isa, "void", *["i64"] * 4)(_merge)
    clear = staged(isa, "void", *["i64"] * 3)(_clear)

    def attention_merge(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk * task_bytes)
        row_bytes = (op.head_dim + 2) * 4
        total = op.scratch + thread * op.scratch_bytes
        clear(total, op.n_heads, op.head_dim)
        for slot in range(task.first_slot, task.first_slot + task.n_slots):
            merge(op.partial + slot * op.n_heads * row_bytes, total, op.n_heads, op.head_dim)
        for head in range(op.n_heads):
            sums = total + head * row_bytes + 8
            out = op.out + (task.token * op.out_stride + head * op.head_dim) * 4
            scale_copy(sums, out, op.head_dim, np.float32(1) / load(sums - 4))

    return attention_merge


def build_kv_append(isa):
    """Keys and values of new tokens into their places in the cache, as float16."""
    op_at = record_viewer(KV_APPEND)
    m_ = memory(isa)
    load, store_f16, load_i64 = m_.load_f32, m_.store_f16, m_.load_i64

    def kv_append(record, chunk, thread):
        op = op_at(record)
        head_dim = op.head_dim
        head_bytes = KV_BLOCK * head_dim * 2
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            slot = load_i64(op.batch.kv_slots + token * 8)
            keys = op.cache + slot // KV_BLOCK * op.block_bytes
            values = keys + op.n_heads * head_bytes
            place = slot % KV_BLOCK
            for head in range(op.n_heads):
                k = op.k + (token * op.stride + head * head_dim) * 4
                v = op.v + (token * op.stride + head * head_dim) * 4
                for i in range(head_dim):
                    store_f16(keys + head * head_bytes + (i * KV_BLOCK + place) * 2, load(k + i * 4))
                for i in range(head_dim):
                    store_f16(values + head * head_bytes + (place * head_dim + i) * 2, load(v + i * 4))

    return kv_append
