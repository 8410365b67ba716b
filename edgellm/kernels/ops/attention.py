"""Attention over a paged cache, with the softmax computed online (Milakov and Gimelshein, 2018; FlashAttention).

The cache of a layer is an array of blocks of KV_BLOCK tokens in float16. A block holds, for every key-value
head, first the keys as [head_dim, KV_BLOCK] and then, behind the keys of all heads, the values as
[KV_BLOCK, head_dim]: so a register holds one dimension of several keys, or several dimensions of one value,
and neither product needs sums across a register.

The query heads that share a key-value head ("group") and several tokens form the rows of one tile: every key
and value loaded serves all of them. For each row stand in scratch memory the query, the scores against one
block, the largest score so far (m), the sum of exponentials (l) and the weighted sum of values.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ATTENTION, ATTENTION_MERGE, ATTENTION_TASK, KV_APPEND, KV_BLOCK, MERGE_TASK
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged

ROWS = 4  # of a tile computed together
LOWEST = -1e30  # below every score, yet finite: the difference of two of them is 0, not NaN


def _scores(v: Vocabulary, n_rows: int, query: Value, head_dim: Value, keys: Value, scores: Value) -> None:
    """scores[r, token] = query[r] . keys[:, token] for the tokens of a block, four registers of them at a time."""
    lanes = v.isa.lanes
    for first in range(0, KV_BLOCK, 4 * lanes):

        def body(i: Value, *sums: Value, first=first) -> list[Value]:
            key = [v.half(keys + i * (KV_BLOCK * 2) + (first + lanes * c) * 2, lanes) for c in range(4)]
            results = []
            for r in range(n_rows):
                x = v.f32(query + (head_dim * r + i) * 4)
                results += [v.fma(key[c], x, sums[4 * r + c]) for c in range(4)]
            return results

        sums = v.loop(head_dim, [v.constant(0.0, F32, lanes)] * (4 * n_rows), body)
        for r in range(n_rows):
            for c in range(4):
                v.store(scores + (r * KV_BLOCK + first + lanes * c) * 4, sums[4 * r + c])


def _softmax(v: Vocabulary, scores: Value, begin: Value, end: Value, m: Value, l: Value) -> Value:
    """Scores of tokens begin to end - 1 become exponentials, all others 0. Returns what to multiply old sums by."""
    lanes = v.isa.lanes
    parts = KV_BLOCK // lanes
    index = v.constant(list(range(lanes)), I32)
    begin, end = (v.splat(x.trunc(I32), lanes) for x in (begin, end))
    lowest = v.constant(LOWEST, F32, lanes)
    values = []
    largest = lowest
    for part in range(parts):
        token = index + part * lanes
        inside = _and(v, v.greater(token + 1, begin), v.greater(end, token))
        values.append(v.select(inside, v.f32(scores + part * lanes * 4, lanes), lowest))
        largest = v.maximum(largest, values[-1])
    old = v.f32(m)
    new = v.maximum(old, largest.max())
    total = v.constant(0.0, F32, lanes)
    for part, value in enumerate(values):
        weight = v.exp(value - new)
        v.store(scores + part * lanes * 4, weight)
        total = total + weight
    correction = v.exp(old - new)
    v.store(m, new)
    v.store(l, v.fma(v.f32(l), correction, total.sum()))
    return correction


def _and(v: Vocabulary, a: Value, b: Value) -> Value:
    return Value(v, v.builder.and_(a.llvm, b.llvm))


def _weighted_values(v: Vocabulary, n_rows: int, weights: Value, begin: Value, end: Value, values: Value,
                     head_dim: Value, first: Value, n_parts: int, corrections: Value, out: Value) -> None:
    """out[r] = out[r] * correction[r] + sum over tokens of weights[r, token] * values[token], some dimensions of it."""
    lanes = v.isa.lanes
    sums = []
    for r in range(n_rows):
        correction = v.f32(corrections + r * 4)
        sums += [v.f32(out + (head_dim * r + first + c * lanes) * 4, lanes) * correction for c in range(n_parts)]

    def body(i: Value, *sums: Value) -> list[Value]:
        token = begin + i
        value = [v.half(values + (token * head_dim + first + c * lanes) * 2, lanes) for c in range(n_parts)]
        results = []
        for r in range(n_rows):
            weight = v.f32(weights + (token + r * KV_BLOCK) * 4)
            results += [v.fma(value[c], weight, sums[n_parts * r + c]) for c in range(n_parts)]
        return results

    sums = v.loop(end - begin, sums, body)
    for r in range(n_rows):
        for c in range(n_parts):
            v.store(out + (head_dim * r + first + c * lanes) * 4, sums[n_parts * r + c])


def build_attention(isa):
    """Chunk c is key-value head c % n_kv_heads of task c // n_kv_heads."""
    op_at, task_at = record_viewer(ATTENTION), record_viewer(ATTENTION_TASK)
    m_ = memory(isa)
    load, store, load_i32 = m_.load_f32, m_.store_f32, m_.load_i32
    task_bytes = ATTENTION_TASK.dtype.itemsize
    lanes = isa.lanes

    @staged(isa, "void", *["i64"] * 4)
    def score_rows(v, query, head_dim, keys, scores):
        _scores(v, ROWS, query, head_dim, keys, scores)

    @staged(isa, "void", *["i64"] * 4)
    def score_row(v, query, head_dim, keys, scores):
        _scores(v, 1, query, head_dim, keys, scores)

    @staged(isa, "f32", *["i64"] * 5)
    def softmax(v, *args):
        return _softmax(v, *args)

    @staged(isa, "void", *["i64"] * 8)
    def weigh_rows(v, weights, begin, end, values, head_dim, first, corrections, out):
        _weighted_values(v, ROWS, weights, begin, end, values, head_dim, first, 4, corrections, out)

    @staged(isa, "void", *["i64"] * 8)
    def weigh_row(v, weights, begin, end, values, head_dim, first, corrections, out):
        _weighted_values(v, 1, weights, begin, end, values, head_dim, first, 4, corrections, out)

    @staged(isa, "void", *["i64"] * 8)
    def weigh_rows_narrow(v, weights, begin, end, values, head_dim, first, corrections, out):
        _weighted_values(v, ROWS, weights, begin, end, values, head_dim, first, 1, corrections, out)

    def attention(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk // op.n_kv_heads * task_bytes)
        kv_head = chunk % op.n_kv_heads
        head_dim, group = op.head_dim, op.group
        n_rows = task.n_tokens * group
        padded = (n_rows + ROWS - 1) // ROWS * ROWS

        query = op.scratch + thread * op.scratch_bytes
        out = query + padded * head_dim * 4
        scores = out + padded * head_dim * 4
        m = scores + padded * KV_BLOCK * 4
        l = m + padded * 4
        corrections = l + padded * 4
        for row in range(padded):
            store(m + row * 4, np.float32(LOWEST))
            store(l + row * 4, np.float32(0))
            store(corrections + row * 4, np.float32(0))
            token, head = row // group, kv_head * group + row % group
            x = op.q + ((task.token + token) * op.q_stride + head * head_dim) * 4
            for i in range(head_dim):
                at = (row * head_dim + i) * 4
                store(out + at, np.float32(0))
                store(query + at, load(x + i * 4) * np.float32(op.scale) if row < n_rows else np.float32(0))

        # All positions that any token of the slice looks at; single tokens are masked in the softmax.
        first = max(task.kv_begin, task.position - op.window + 1)
        end = min(task.kv_end, task.position + task.n_tokens)
        for block in range(first // KV_BLOCK, (end + KV_BLOCK - 1) // KV_BLOCK):
            position = block * KV_BLOCK
            keys = op.cache + load_i32(task.block_table + block * 4) * op.block_bytes
            values = keys + (op.n_kv_heads + kv_head) * KV_BLOCK * head_dim * 2
            keys += kv_head * KV_BLOCK * head_dim * 2
            begin_here = max(first - position, 0)
            end_here = min(end - position, KV_BLOCK)
            row = 0
            while row < n_rows:
                at = query + row * head_dim * 4
                if n_rows - row > 1:
                    score_rows(at, head_dim, keys, scores + row * KV_BLOCK * 4)
                else:
                    score_row(at, head_dim, keys, scores + row * KV_BLOCK * 4)
                row += ROWS
            for r in range(n_rows):
                here = task.position + r // group - position
                begin = max(task.kv_begin - position, here - op.window + 1)
                store(corrections + r * 4, softmax(scores + r * KV_BLOCK * 4, begin, min(end_here, here + 1),
                                                   m + r * 4, l + r * 4))
            row = 0
            while row < n_rows:
                weights, to, by = scores + row * KV_BLOCK * 4, out + row * head_dim * 4, corrections + row * 4
                i = 0
                while i + 4 * lanes <= head_dim:
                    if n_rows - row > 1:
                        weigh_rows(weights, begin_here, end_here, values, head_dim, i, by, to)
                    else:
                        weigh_row(weights, begin_here, end_here, values, head_dim, i, by, to)
                    i += 4 * lanes
                while i < head_dim:
                    weigh_rows_narrow(weights, begin_here, end_here, values, head_dim, i, by, to)
                    i += lanes
                row += ROWS

        for row in range(n_rows):
            token, head = row // group, kv_head * group + row % group
            x = out + row * head_dim * 4
            total = load(l + row * 4)
            if task.slot < 0:
                to = op.out + ((task.token + token) * op.out_stride + head * head_dim) * 4
                for i in range(head_dim):
                    store(to + i * 4, load(x + i * 4) / total)
            else:
                to = op.partial + (task.slot * op.n_kv_heads * group + head) * (head_dim + 2) * 4
                store(to, load(m + row * 4))
                store(to + 4, total)
                for i in range(head_dim):
                    store(to + 8 + i * 4, load(x + i * 4))

    return attention


def build_attention_merge(isa):
    """Put the partial results of a token together; chunk c is the c-th token that was split."""
    op_at, task_at = record_viewer(ATTENTION_MERGE), record_viewer(MERGE_TASK)
    m_ = memory(isa)
    load, store = m_.load_f32, m_.store_f32
    task_bytes = MERGE_TASK.dtype.itemsize

    @staged(isa, "f32", "f32")
    def exp(v, x):
        return v.exp(x)

    def attention_merge(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk * task_bytes)
        slot_bytes = op.n_heads * (op.head_dim + 2) * 4
        for head in range(op.n_heads):
            part = op.partial + task.first_slot * slot_bytes + head * (op.head_dim + 2) * 4
            largest = np.float32(LOWEST)
            for slot in range(task.n_slots):
                largest = max(largest, load(part + slot * slot_bytes))
            total = np.float32(0)
            for slot in range(task.n_slots):
                at = part + slot * slot_bytes
                total += load(at + 4) * exp(load(at) - largest)
            out = op.out + (task.token * op.out_stride + head * op.head_dim) * 4
            for i in range(op.head_dim):
                store(out + i * 4, np.float32(0))
            for slot in range(task.n_slots):
                at = part + slot * slot_bytes
                weight = exp(load(at) - largest) / total
                for i in range(op.head_dim):
                    store(out + i * 4, load(out + i * 4) + weight * load(at + 8 + i * 4))

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
