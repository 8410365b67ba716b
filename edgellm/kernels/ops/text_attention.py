"""Attention of whole texts to themselves: queries, keys and values are rows of the batch, and no cache has any.

A token may see what comes after it, all of its text or a window to both sides. Texts stand one behind the other, and
a text's result depends on nothing but the text: its tiles of queries begin with its first token, and a query's sums go
over the keys in their order.
"""

from __future__ import annotations

import numpy as np

from edgellm.kernels.encoder_records import TEXT_ATTENTION, TEXT_TASK
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.matrix_products import product
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.query_tile import COLUMNS, ROW_BYTES, TILE, mask_scores, row_places, transpose_tile
from edgellm.kernels.staged import F32, Value, Vocabulary, staged


def _softmax(v: Vocabulary, scores: Value, n_keys: Value, distance: Value, window: Value, ahead: Value, scale: Value,
             slope: Value, inverses: Value, *, alibi: bool) -> None:  # fmt: skip
    """Products of keys and queries become exponentials of scores, and `inverses` 1 / their sum, for each query.

    distance:  from the first key to the first query, in positions.
    """
    width = COLUMNS * v.isa.lanes

    def some(i: Value) -> None:
        at = i * (4 * width)
        rows, from_key = scores + at, distance + i * width
        largest = mask_scores(v, rows, n_keys, from_key, window, ahead, scale, slope if alibi else None)
        totals = v.loop(n_keys, [v.constant(0.0, F32, v.isa.lanes)] * COLUMNS, _exponentials(v, rows, largest))
        for c, total in enumerate(totals):
            v.store(inverses + at + c * v.isa.lanes * 4, v.constant(1.0, F32, v.isa.lanes) / total)

    v.repeat(v.like(TILE // width, n_keys), some)


def _exponentials(v: Vocabulary, rows: Value, largest: list[Value]):
    def of_key(key: Value, *totals: Value) -> list[Value]:
        results = []
        for at, most, total in zip(row_places(v, rows, key), largest, totals, strict=True):
            weight = v.exp(v.f32(at, v.isa.lanes) - most)
            v.store(at, weight)
            results.append(total + weight)
        return results

    return of_key


def _scale_rows(v: Vocabulary, rows: Value, row_bytes: Value, n_rows: Value, n: Value, factors: Value) -> None:
    """rows[r] *= factors[r]"""

    def one(r: Value) -> None:
        row, factor = rows + row_bytes * r, v.f32(factors + r * 4)
        v.elements(n, v.isa.lanes, lambda i, lanes: v.store(row + i * 4, v.f32(row + i * 4, lanes) * factor))

    v.repeat(n_rows, one)


def build_text_attention(isa, alibi):
    """Chunk c is head c % n_heads of task c // n_heads."""
    op_at, task_at = record_viewer(TEXT_ATTENTION), record_viewer(TEXT_TASK)
    task_bytes = TEXT_TASK.dtype.itemsize
    load = memory(isa).load_f32
    transpose = staged(isa, "void", *["i64"] * 5)(transpose_tile)

    @staged(isa, "void", *["i64"] * 5, "f32", "f32", "i64")
    def softmax(v, scores, n_keys, distance, window, ahead, scale, slope, inverses):
        _softmax(v, scores, n_keys, distance, window, ahead, scale, slope, inverses, alibi=alibi)

    scale_rows = staged(isa, "void", *["i64"] * 5)(_scale_rows)
    multiply = product(isa)

    def text_attention(record, chunk, thread):
        op = op_at(record)
        task, head = task_at(op.tasks + chunk // op.n_heads * task_bytes), chunk % op.n_heads
        window, ahead = min(op.window, task.n_tokens), min(op.ahead, task.n_tokens)
        q_bytes, k_bytes, v_bytes, out_bytes = op.q_stride * 4, op.k_stride * 4, op.v_stride * 4, op.out_stride * 4
        kv_head = head // op.group
        slope = np.float32(0)
        if alibi:
            slope = load(op.slopes + head * 4)

        turned = op.scratch + thread * op.scratch_bytes
        inverses = turned + op.key_dim * ROW_BYTES
        scores = inverses + ROW_BYTES
        for first in range(task.first, task.first + task.n_queries, TILE):
            n_queries = min(TILE, task.first + task.n_queries - first)
            begin = max(0, first - window + 1)
            n_keys = min(task.n_tokens, first + n_queries + ahead) - begin
            q = op.q + (task.token + first) * q_bytes + head * op.key_dim * 4
            k = op.k + (task.token + begin) * k_bytes + kv_head * op.key_dim * 4
            values = op.v + (task.token + begin) * v_bytes + kv_head * op.value_dim * 4
            out = op.out + (task.token + first) * out_bytes + head * op.value_dim * 4

            transpose(q, q_bytes, n_queries, op.key_dim, turned)
            multiply(k, k_bytes, 4, turned, ROW_BYTES, scores, ROW_BYTES, n_keys, TILE, op.key_dim, 0)
            softmax(scores, n_keys, first - begin, window, ahead, np.float32(op.scale), slope, inverses)
            multiply(scores, 4, ROW_BYTES, values, v_bytes, out, out_bytes, n_queries, op.value_dim, n_keys, 0)
            scale_rows(out, out_bytes, n_queries, op.value_dim, inverses)

    return text_attention
