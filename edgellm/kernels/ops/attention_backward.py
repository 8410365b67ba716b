"""Gradients of attention over whole documents: dq, dk and dv from q, k, v and the gradient of the result.

The forward pass keeps nothing of its softmax, so it is computed anew, for a tile of queries at a time:

    P = softmax(scale q k^T)    dP = dout v^T    dS = scale P (dP - rowsum(P dP))
    dq = dS k                   dk += dS^T q     dv += P^T dout

P, dP and dS lie transposed, a row for each key: a lane of a register is a query, so that softmax never looks across
lanes, and all five products read one of their factors number by number and the other in whole registers.

In the general form, scores are capped first, s = cap tanh(scale q k^T / cap), so dS is multiplied by 1 - (s / cap)**2;
they lose something for each position of distance (ALiBi); and a sink takes its share of the softmax.

dk and dv are summed up over heads, tiles and queries in their order: whoever does a chunk, the bits are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from edgellm.kernels.gradient_records import ATTENTION_BACKWARD, DOCUMENT_TASK, SUM_HEADS
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.matrix_products import product
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.query_tile import COLUMNS, MASKED, ROW_BYTES, TILE, mask_scores, row_places, transpose_tile
from edgellm.kernels.staged import F32, Value, Vocabulary, staged


class General(NamedTuple):
    """What the general form has beside, of a head.

    slopes:  memory like that of the scores, for what capping makes of a small change of each.
    cap:     0 is none. bias: what a score loses for each position. sink: so low that it weighs 0 where there is none.
    """

    slopes: Value
    cap: Value
    bias: Value
    sink: Value


def _softmax_backward(v: Vocabulary, scores: Value, gradients: Value, n_keys: Value, distance: Value, window: Value,
                      ahead: Value, scale: Value, general: General | None = None) -> None:  # fmt: skip
    """Products of keys and queries, and of values and gradients, become P and dS, for all queries of a tile.

    distance:  from the first key to the first query, in positions.
    """
    width = COLUMNS * v.isa.lanes

    def some(i: Value) -> None:
        at = i * (4 * width)
        own = None if general is None else general._replace(slopes=general.slopes + at)
        _softmax_columns(v, scores + at, gradients + at, n_keys, distance + i * width, window, ahead, scale, own)

    v.repeat(v.like(TILE // width, n_keys), some)


def _cap_scores(v: Vocabulary, scores: Value, n_keys: Value, scale: Value, general: General) -> None:
    """Products become scores, scaled and capped; beside them, their slopes."""
    lanes = v.isa.lanes
    one = v.constant(1.0, F32, lanes)
    cap = v.splat(general.cap, lanes)
    is_capped = v.greater(cap, v.constant(0.0, F32, lanes))
    by = v.select(is_capped, cap, one)

    def change(key: Value) -> None:
        for at, slope in zip(row_places(v, scores, key), row_places(v, general.slopes, key), strict=True):
            score = v.f32(at, lanes) * scale
            share = v.tanh(score / by)
            v.store(at, v.select(is_capped, share * by, score))
            v.store(slope, v.select(is_capped, -share * share + one, one))

    v.repeat(n_keys, change)


def _softmax_columns(v: Vocabulary, scores: Value, gradients: Value, n_keys: Value, distance: Value, window: Value,
                     ahead: Value, scale: Value, general: General | None) -> None:  # fmt: skip
    """The same for some registers of queries."""
    lanes = v.isa.lanes
    columns = range(COLUMNS)
    zero = v.constant(0.0, F32, lanes)

    def places(rows: Value, key: Value) -> list[Value]:
        return row_places(v, rows, key)

    if general is None:
        largest = mask_scores(v, scores, n_keys, distance, window, ahead, scale)
        start = [zero for _ in columns]
    else:
        _cap_scores(v, scores, n_keys, scale, general)
        plain, sink = v.like(1.0, scale), v.splat(general.sink, lanes)
        largest = mask_scores(v, scores, n_keys, distance, window, ahead, plain, general.bias)
        largest = [v.maximum(most, sink) for most in largest]
        start = [v.exp(sink - most) for most in largest]

    def exponentials(key: Value, *sums: Value) -> list[Value]:
        totals, products = [], []
        for c, at, gradient in zip(columns, places(scores, key), places(gradients, key), strict=True):
            weight = v.exp(v.f32(at, lanes) - largest[c])
            v.store(at, weight)
            totals.append(sums[c] + weight)
            products.append(v.fma(weight, v.f32(gradient, lanes), sums[COLUMNS + c]))
        return totals + products

    sums = v.loop(n_keys, [*start, *(zero for _ in columns)], exponentials)
    inverses = [v.constant(1.0, F32, lanes) / total for total in sums[:COLUMNS]]
    means = [total * inverse for total, inverse in zip(sums[COLUMNS:], inverses, strict=True)]

    def gradients_of_scores(key: Value) -> None:
        slopes = places(gradients if general is None else general.slopes, key)
        rows = zip(columns, places(scores, key), places(gradients, key), slopes, strict=True)
        for c, at, gradient, slope in rows:
            probability = v.f32(at, lanes) * inverses[c]
            v.store(at, probability)
            by_score = probability * scale * (v.f32(gradient, lanes) - means[c])
            v.store(gradient, by_score if general is None else by_score * v.f32(slope, lanes))

    v.repeat(n_keys, gradients_of_scores)


def _clear(v: Vocabulary, rows: Value, row_bytes: Value, n_rows: Value, n: Value) -> None:
    def clear_row(r: Value) -> None:
        row = rows + row_bytes * r
        v.elements(n, v.isa.lanes, lambda i, lanes: v.store(row + i * 4, v.constant(0.0, F32, lanes)))

    v.repeat(n_rows, clear_row)


def build_attention_backward(isa, general):
    """Chunk c is key-value head c % n of document c // n, or a part of its group, for n = n_kv_heads * n_parts."""
    op_at, task_at = record_viewer(ATTENTION_BACKWARD), record_viewer(DOCUMENT_TASK)
    task_bytes = DOCUMENT_TASK.dtype.itemsize
    transpose = staged(isa, "void", *["i64"] * 5)(transpose_tile)
    load = memory(isa).load_f32

    @staged(isa, "void", *["i64"] * 6, "f32", "i64", "f32", "f32", "f32")
    def softmax_backward(v, scores, gradients, n_keys, distance, window, ahead, scale, slopes, cap, bias, sink):
        more = General(slopes, cap, bias, sink) if general else None
        _softmax_backward(v, scores, gradients, n_keys, distance, window, ahead, scale, more)

    clear = staged(isa, "void", *["i64"] * 4)(_clear)
    multiply = product(isa)

    @njit(error_model="numpy")  # compiled once for all who call it
    def meet(rows, row_bytes, n_rows, others, other_bytes, n_others, head_dim, turned, out):
        """out[row, other] = rows[row] . others[other], for a tile of others."""
        transpose(others, other_bytes, n_others, head_dim, turned)
        multiply(rows, row_bytes, 4, turned, ROW_BYTES, out, ROW_BYTES, n_rows, TILE, head_dim, 0)

    def attention_backward(record, chunk, thread):
        op = op_at(record)
        n_slots = op.n_kv_heads * op.n_parts
        document, slot = task_at(op.documents + chunk // n_slots * task_bytes), chunk % n_slots
        n_tokens, head_dim = document.n_tokens, op.head_dim
        window, ahead = min(op.window, n_tokens), min(op.ahead, n_tokens)
        q_bytes, kv_bytes, dkv_bytes = op.q_stride * 4, op.kv_stride * 4, op.dkv_stride * 4
        kv_at = document.token * kv_bytes + slot // op.n_parts * head_dim * 4
        dkv_at = document.token * dkv_bytes + slot * head_dim * 4
        clear(op.dk + dkv_at, dkv_bytes, n_tokens, head_dim)
        clear(op.dv + dkv_at, dkv_bytes, n_tokens, head_dim)

        turned = op.scratch + thread * op.scratch_bytes
        scores = turned + head_dim * ROW_BYTES
        n_heads = op.group // op.n_parts
        for head in range(slot * n_heads, (slot + 1) * n_heads):
            bias, sink = np.float32(0), np.float32(MASKED)
            if general and op.biases != 0:
                bias = load(op.biases + head * 4)
            if general and op.sinks != 0:
                sink = load(op.sinks + head * 4)
            for first in range(0, n_tokens, TILE):
                n_queries = min(TILE, n_tokens - first)
                begin = max(0, first - window + 1)
                n_keys = min(n_tokens, first + n_queries + ahead) - begin
                gradients = scores + n_keys * ROW_BYTES
                q_at = (document.token + first) * q_bytes + head * head_dim * 4
                q, dout, dq = op.q + q_at, op.dout + q_at, op.dq + q_at
                k, v = op.k + kv_at + begin * kv_bytes, op.v + kv_at + begin * kv_bytes
                dk, dv = op.dk + dkv_at + begin * dkv_bytes, op.dv + dkv_at + begin * dkv_bytes

                meet(k, kv_bytes, n_keys, q, q_bytes, n_queries, head_dim, turned, scores)
                meet(v, kv_bytes, n_keys, dout, q_bytes, n_queries, head_dim, turned, gradients)
                slopes, scale, cap = gradients + n_keys * ROW_BYTES, np.float32(op.scale), np.float32(op.cap)
                distance = first - begin
                softmax_backward(scores, gradients, n_keys, distance, window, ahead, scale, slopes, cap, bias, sink)
                multiply(gradients, 4, ROW_BYTES, k, kv_bytes, dq, q_bytes, n_queries, head_dim, n_keys, 0)
                multiply(gradients, ROW_BYTES, 4, q, q_bytes, dk, dkv_bytes, n_keys, head_dim, n_queries, 1)
                multiply(scores, ROW_BYTES, 4, dout, q_bytes, dv, dkv_bytes, n_keys, head_dim, n_queries, 1)

    return attention_backward


def build_sum_heads(isa):
    """Every n_parts neighbouring heads added up."""
    op_at = record_viewer(SUM_HEADS)

    @staged(isa, "void", *["i64"] * 4)
    def add_up(v, heads, n_parts, head_dim, out):
        def some(i: Value, lanes: int) -> None:
            def add(part: Value, total: Value) -> list[Value]:
                return [total + v.f32(heads + ((part + 1) * head_dim + i) * 4, lanes)]

            (total,) = v.loop(n_parts - 1, [v.f32(heads + i * 4, lanes)], add)
            v.store(out + i * 4, total)

        v.elements(head_dim, v.isa.lanes, some)

    def sum_heads(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for head in range(op.n_heads):
                heads = op.x + (token * op.stride + head * op.n_parts * op.head_dim) * 4
                add_up(heads, op.n_parts, op.head_dim, op.out + (token * op.out_stride + head * op.head_dim) * 4)

    return sum_heads
