"""Attention over a paged cache, span by span (after FlashAttention; for the cache's layout see `kernels.kv_types`).

Keys stand by dimension and values by token: so a register holds one dimension of several keys, or several
dimensions of one value, and neither product needs sums across a register.

The query heads that share a key-value head ("group") and several tokens form the rows of a slice: every key and
value that is loaded serves several of them. Positions are taken in spans of SPAN_TOKENS. For a span, the scores of
all rows are computed, then their softmax, then the weighted sums of values; this result is merged into the total
of the spans before (`attention_merge`). So a long past gives the same bits whether one task sees all of it or every
span is another task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit

from edgellm.kernels.isa import Isa
from edgellm.kernels.kv_types import SCALE_BYTES, SCALE_GROUP, KVType
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.attention_merge import (
    LANES,
    LOWEST,
    begin_with_score,
    clear_results,
    copy_scaled,
    merge_results,
)
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ATTENTION, ATTENTION_TASK, ATTENTION_TILE_ROWS, KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged

HEIGHTS = (ATTENTION_TILE_ROWS, 4, 3, 2, 1)  # rows of a tile: the first as often as there are rows for it, ...
MASKED = 2 * LOWEST  # less than LOWEST by so much that its exponential is always 0
SPAN_ROW_BYTES = 4 * SPAN_TOKENS


def _columns(isa: Isa) -> int:
    """Registers side by side in a tile: with the highest tile, they leave some for what is multiplied."""
    return 4 if isa.n_registers >= 32 else 2


def _tiles(v: Vocabulary, n_rows: Value, tile: Callable[[Value, int], None]) -> None:
    """tile(first row, height) until all rows had their turn."""
    first = v.like(0, n_rows)
    for height in HEIGHTS:

        def one(i: Value, first: Value = first, height: int = height) -> None:
            tile(first + i * height, height)

        n = (n_rows - first) / height
        v.repeat(n, one)
        first = first + n * height


def _groups(v: Vocabulary, kind: KVType, head_dim: Value) -> tuple[Value, Value]:
    """How many groups of dimensions have a scale of their own, and the size of all but the last."""
    if not kind.has_scales:
        return v.like(1, head_dim), head_dim
    return (head_dim + (SCALE_GROUP - 1)) / SCALE_GROUP, v.like(SCALE_GROUP, head_dim)


def _prefetch(v: Vocabulary, n_rows: int, address: Value, n_bytes: int) -> None:
    """For few rows: many rows wait for arithmetic, not for memory."""
    if n_rows < ATTENTION_TILE_ROWS:
        for line in range(0, n_bytes, 64):
            v.prefetch(address + line)


def _scores(v: Vocabulary, query: Value, n_rows: Value, key_dim: Value, keys: Value, ahead: Value, scores: Value, *,
            kind: KVType) -> None:  # fmt: skip
    """scores[r, token] = query[r] . keys[:, token] for the tokens of a block.

    ahead:  from this block to the one that is needed next, in bytes.
    """

    def tile(row: Value, height: int) -> None:
        for first in range(0, KV_BLOCK, _columns(v.isa) * v.isa.lanes):
            _score_tile(v, kind, height, query + row * key_dim * 4, key_dim, keys, ahead, first,
                        scores + row * SPAN_ROW_BYTES)  # fmt: skip

    _tiles(v, n_rows, tile)


def _score_tile(v: Vocabulary, kind: KVType, n_rows: int, query: Value, key_dim: Value, keys: Value, ahead: Value,
                first: int, scores: Value) -> None:  # fmt: skip
    """A tile of rows by some registers of tokens, from `first` on."""
    lanes = v.isa.lanes
    tokens = [first + lanes * c for c in range(_columns(v.isa))]
    rows = range(n_rows)
    dimension_bytes = KV_BLOCK * kind.number_bytes
    n_groups, group_size = _groups(v, kind, key_dim)
    zeros = [v.constant(0.0, F32, lanes)] * (n_rows * len(tokens))

    def group(g: Value, *totals: Value) -> list[Value]:
        def dimension(i: Value, *sums: Value) -> list[Value]:
            i = g * group_size + i
            at = keys + i * dimension_bytes
            if first == 0:
                _prefetch(v, n_rows, at + ahead, dimension_bytes)
            key = [kind.load(v, at + token * kind.number_bytes, lanes) for token in tokens]
            x = [v.f32(query + (key_dim * r + i) * 4) for r in rows]
            return [v.fma(key[c], x[r], sums[len(key) * r + c]) for r in rows for c in range(len(key))]

        sums = v.loop(v.minimum(group_size, key_dim - g * group_size), zeros, dimension)
        if not kind.has_scales:
            return sums
        scales_at = keys + key_dim * dimension_bytes + g * (KV_BLOCK * SCALE_BYTES)
        scales = [v.half(scales_at + token * SCALE_BYTES, lanes) for token in tokens]
        return [v.fma(x, scales[i % len(scales)], totals[i]) for i, x in enumerate(sums)]

    totals = iter(v.loop(n_groups, zeros, group))
    for r in rows:
        for token in tokens:
            v.store(scores + (r * SPAN_ROW_BYTES + token * 4), next(totals))


def _softmax(v: Vocabulary, scores: Value, n_blocks: Value, begin: Value, end: Value, result: Value) -> None:
    """A row's scores against n_blocks blocks, which become exponentials: of tokens begin to end - 1, all others 0.

    Sets m and l of the row's result.
    """
    lanes = v.isa.lanes
    parts = range(KV_BLOCK // lanes)
    n_seen = v.splat(v.maximum(end - begin, v.like(0, end)).trunc(I32), lanes)
    masked = v.constant(MASKED, F32, lanes)
    index = v.constant(list(range(lanes)), I32)

    def mask(block: Value, *largest: Value) -> list[Value]:
        results = []
        for part in parts:
            token = block * KV_BLOCK + part * lanes
            after_begin = index + v.splat((token - begin).trunc(I32), lanes)
            # As unsigned numbers, those below 0 are large.
            is_seen = Value(v, v.builder.icmp_unsigned("<", after_begin.llvm, n_seen.llvm))
            score = v.select(is_seen, v.f32(scores + token * 4, lanes), masked)
            v.store(scores + token * 4, score)
            results.append(v.maximum(largest[part], score))
        return results

    largest = v.loop(n_blocks, [v.constant(LOWEST, F32, lanes) for _ in parts], mask)
    m = _fold(v, largest, v.maximum)

    def exponentials(block: Value, *totals: Value) -> list[Value]:
        results = []
        for part in parts:
            at = scores + (block * KV_BLOCK + part * lanes) * 4
            weight = v.exp(v.f32(at, lanes) - m)
            v.store(at, weight)
            results.append(totals[part] + weight)
        return results

    totals = v.loop(n_blocks, [v.constant(0.0, F32, lanes) for _ in parts], exponentials)
    v.store(result, m)
    v.store(result + 4, _fold(v, totals, lambda a, b: a + b))


def _change_scores(v: Vocabulary, scores: Value, n_blocks: Value, change: Callable[[Value, Value], Value]) -> None:
    """Each register of a row's scores becomes change(the first token's index, scores)."""
    lanes = v.isa.lanes

    def some(i: Value) -> None:
        at = scores + i * (4 * lanes)
        v.store(at, change(i * lanes, v.f32(at, lanes)))

    v.repeat(n_blocks * (KV_BLOCK // lanes), some)


def _cap(v: Vocabulary, scores: Value, n_blocks: Value, cap: Value) -> None:
    """Soft cap: a score s becomes cap * tanh(s / cap)."""
    _change_scores(v, scores, n_blocks, lambda i, score: v.tanh(score / cap) * cap)


def _bias(v: Vocabulary, scores: Value, n_blocks: Value, distance: Value, slope: Value) -> None:
    """Linear biases: a score loses `slope` for each position; distance: from the first token to the row's own."""
    index = v.constant([float(lane) for lane in range(v.isa.lanes)], F32)

    def biased(i: Value, score: Value) -> Value:
        return v.fma(index - (distance - i).to(F32), slope, score)

    _change_scores(v, scores, n_blocks, biased)


def _fold(v: Vocabulary, parts: list[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Registers (a power of two of them) to one number, by halves."""
    while len(parts) > 1:
        parts = [combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    total = parts[0]
    while total.n > 1:
        total = combine(*v.halves(total))
    return total


def _weigh(v: Vocabulary, weights: Value, n_rows: Value, value_dim: Value, begin: Value, end: Value, values: Value,
           ahead: Value, result: Value, scaled: Value, *, kind: KVType) -> None:  # fmt: skip
    """sums[r] += weights[r, token] * values[token] for the tokens begin to end - 1 of a block.

    scaled:  memory for the weights of a tile, which are scaled rather than the values: there are fewer of them.
    """
    lanes = v.isa.lanes
    n_groups, group_size = _groups(v, kind, value_dim)
    width = _columns(v.isa) * lanes
    if kind.has_scales:
        width = min(width, SCALE_GROUP)

    def tile(row: Value, height: int) -> None:
        own, to = weights + row * SPAN_ROW_BYTES, result + row * (value_dim + 2) * 4 + 8

        def group(g: Value) -> None:
            by, by_bytes = own, SPAN_ROW_BYTES
            if kind.has_scales:
                scales = values + (value_dim * kind.number_bytes + g * SCALE_BYTES) * KV_BLOCK
                by, by_bytes = scaled, 4 * KV_BLOCK
                _scale_weights(v, height, own, scales, scaled)

            def some(start: Value, width: int) -> None:
                _weigh_tile(v, kind, height, by, by_bytes, begin, end, values + start * kind.number_bytes, ahead,
                            value_dim, width // lanes, to + start * 4)  # fmt: skip

            first = g * group_size
            n = v.minimum(group_size, value_dim - first)
            n_wide = n / width
            v.repeat(n_wide, lambda i: some(first + i * width, width))
            if width > LANES:
                rest = n_wide * width
                v.repeat((n - rest) / LANES, lambda i: some(first + rest + i * LANES, LANES))

        v.repeat(n_groups, group)

    _tiles(v, n_rows, tile)


def _scale_weights(v: Vocabulary, n_rows: int, weights: Value, scales: Value, scaled: Value) -> None:
    """scaled[r, token] = weights[r, token] * scales[token] for a tile of rows and all tokens of a block."""
    lanes = v.isa.lanes
    for token in range(0, KV_BLOCK, lanes):
        scale = v.half(scales + token * SCALE_BYTES, lanes)
        for r in range(n_rows):
            weight = v.f32(weights + (r * SPAN_ROW_BYTES + token * 4), lanes)
            v.store(scaled + (r * KV_BLOCK + token) * 4, weight * scale)


def _weigh_tile(v: Vocabulary, kind: KVType, n_rows: int, weights: Value, row_bytes: int, begin: Value, end: Value,
                values: Value, ahead: Value, value_dim: Value, n_parts: int, sums: Value) -> None:  # fmt: skip
    """A tile of rows by n_parts registers of dimensions, which `values` and `sums` point to."""
    lanes = v.isa.lanes
    rows, parts = range(n_rows), range(n_parts)
    places = [sums + (value_dim + 2) * (4 * r) + c * lanes * 4 for r in rows for c in parts]

    def token(i: Value, *sums: Value) -> list[Value]:
        i = begin + i
        at = values + i * value_dim * kind.number_bytes
        _prefetch(v, n_rows, at + ahead, n_parts * lanes * kind.number_bytes)
        value = [kind.load(v, at + c * lanes * kind.number_bytes, lanes) for c in parts]
        weight = [v.f32(weights + i * 4 + r * row_bytes) for r in rows]
        return [v.fma(value[c], weight[r], sums[n_parts * r + c]) for r in rows for c in parts]

    totals = v.loop(end - begin, [v.f32(place, lanes) for place in places], token)
    for place, total in zip(places, totals, strict=True):
        v.store(place, total)


def build_attention(isa, kind: KVType):
    """Chunk c is key-value head c % n_kv_heads of task c // n_kv_heads."""
    op_at, task_at = record_viewer(ATTENTION), record_viewer(ATTENTION_TASK)
    m = memory(isa)
    load, load_i32, load_i64 = m.load_f32, m.load_i32, m.load_i64
    task_bytes = ATTENTION_TASK.dtype.itemsize
    score = staged(isa, "void", *["i64"] * 6)(partial(_scores, kind=kind))
    softmax = staged(isa, "void", *["i64"] * 5)(_softmax)
    weigh = staged(isa, "void", *["i64"] * 9)(partial(_weigh, kind=kind))
    copy = staged(isa, "void", "i64", "i64", "i64", "f32")(copy_scaled)
    merge = staged(isa, "void", *["i64"] * 4)(merge_results)
    clear = staged(isa, "void", *["i64"] * 3)(clear_results)
    begin_with = staged(isa, "void", "i64", "f32")(begin_with_score)
    cap = staged(isa, "void", "i64", "i64", "f32")(_cap)
    bias = staged(isa, "void", "i64", "i64", "i64", "f32")(_bias)

    @njit(error_model="numpy")
    def next_keys(op, chunk, otherwise):
        """Where the keys start that this thread is likely to need after this chunk."""
        following = chunk + op.n_threads
        if following >= load_i64(op.chunk_count):
            return otherwise
        task = task_at(op.tasks + following // op.n_kv_heads * task_bytes)
        block = max(task.kv_begin, task.position - op.window + 1) // KV_BLOCK
        head = following % op.n_kv_heads * op.key_bytes
        return op.cache + load_i32(task.block_table + block * 4) * op.block_bytes + head

    def attention(record, chunk, thread):
        op = op_at(record)
        task = task_at(op.tasks + chunk // op.n_kv_heads * task_bytes)
        kv_head = chunk % op.n_kv_heads
        key_dim, value_dim, group = op.key_dim, op.value_dim, op.group
        n_rows = task.n_tokens * group
        row_bytes = (value_dim + 2) * 4
        all_keys = op.cache + kv_head * op.key_bytes
        all_values = op.cache + op.n_kv_heads * op.key_bytes + kv_head * op.value_bytes

        query = op.scratch + thread * op.scratch_bytes
        result = query + n_rows * key_dim * 4
        total = result + n_rows * row_bytes
        scores = total + n_rows * row_bytes
        scaled = scores + n_rows * SPAN_ROW_BYTES
        for row in range(n_rows):
            x = op.q + ((task.token + row // group) * op.q_stride + (kv_head * group + row % group) * key_dim) * 4
            copy(x, query + row * key_dim * 4, key_dim, np.float32(op.scale))

        # All positions that any token of the slice looks at; what single tokens must not see, softmax masks.
        first = max(task.kv_begin, task.position - op.window + 1)
        end = min(task.kv_end, task.position + task.n_tokens)
        clear(total, n_rows, value_dim)
        if op.sinks != 0:
            for row in range(n_rows):
                begin_with(total + row * row_bytes, load(op.sinks + (kv_head * group + row % group) * 4))
        for span in range(first // SPAN_TOKENS, (end + SPAN_TOKENS - 1) // SPAN_TOKENS):
            begin_span, end_span = max(first, span * SPAN_TOKENS), min(end, (span + 1) * SPAN_TOKENS)
            clear(result, n_rows, value_dim)
            first_block, end_block = begin_span // KV_BLOCK, (end_span + KV_BLOCK - 1) // KV_BLOCK
            for block in range(first_block, end_block):
                keys = all_keys + load_i32(task.block_table + block * 4) * op.block_bytes
                if block + 1 < end_block:
                    following = all_keys + load_i32(task.block_table + (block + 1) * 4) * op.block_bytes
                else:
                    following = all_values + load_i32(task.block_table + first_block * 4) * op.block_bytes
                score(query, n_rows, key_dim, keys, following - keys, scores + (block - first_block) * KV_BLOCK * 4)

            start = first_block * KV_BLOCK
            for row in range(n_rows):
                position = task.position + row // group
                begin, stop = max(begin_span, position - op.window + 1), min(end_span, position + 1)
                own = scores + row * SPAN_ROW_BYTES
                if op.soft_cap != 0:
                    cap(own, end_block - first_block, np.float32(op.soft_cap))
                if op.slopes != 0:
                    slope = load(op.slopes + (kv_head * group + row % group) * 4)
                    bias(own, end_block - first_block, position - start, slope)
                softmax(own, end_block - first_block, begin - start, stop - start, result + row * row_bytes)

            for block in range(first_block, end_block):
                values = all_values + load_i32(task.block_table + block * 4) * op.block_bytes
                if block + 1 < end_block:
                    following = all_values + load_i32(task.block_table + (block + 1) * 4) * op.block_bytes
                else:
                    following = next_keys(op, chunk, values)
                begin, stop = begin_span - block * KV_BLOCK, end_span - block * KV_BLOCK
                weigh(scores + (block - first_block) * KV_BLOCK * 4, n_rows, value_dim, max(begin, 0),
                      min(stop, KV_BLOCK), values, following - values, result, scaled)  # fmt: skip
            if task.slot < 0:
                merge(result, total, n_rows, value_dim)

        if task.slot >= 0:  # a task of a single span: others will merge it
            copy(result, op.partial + (task.slot * op.n_kv_heads + kv_head) * group * row_bytes,
                 group * (value_dim + 2), np.float32(1))  # fmt: skip
            return
        for row in range(n_rows):
            sums = total + row * row_bytes + 8
            token, head = task.token + row // group, kv_head * group + row % group
            copy(sums, op.out + (token * op.out_stride + head * value_dim) * 4, value_dim,
                 np.float32(1) / load(sums - 4))  # fmt: skip

    return attention
