"""Attention over a paged cache, span by span (after FlashAttention; for the cache's layout see `kernels.kv_types`).

The query heads that share a key-value head ("group") and several tokens form the rows of a slice: every key and
value that is loaded serves several of them. Positions are taken in spans of SPAN_TOKENS. For a span, the scores of
all rows are computed, then their softmax, then the weighted sums of values (for a cache of floats in
`attention_floats`, for one of integers in `attention_integers`); this result is merged into the total
of the spans before (`attention_merge`). So a long past gives the same bits whether one task sees all of it or every
span is another task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit

from edgellm.kernels.kv_types import CacheType, ChannelKeys, FloatKV, IntegerKV, KVType
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops import attention_channels, attention_floats, attention_integers
from edgellm.kernels.ops.attention_merge import (
    LOWEST,
    begin_with_score,
    clear_results,
    copy_scaled,
    merge_results,
)
from edgellm.kernels.ops.attention_tiles import SPAN_ROW_BYTES
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.rotate import rotation
from edgellm.kernels.ops.shares import share_start
from edgellm.kernels.records import ATTENTION, ATTENTION_TASK, KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.staged import F32, I32, Value, Vocabulary, staged

MASKED = 2 * LOWEST  # less than LOWEST by so much that its exponential is always 0


def _softmax(v: Vocabulary, scores: Value, n_blocks: Value, begin: Value, end: Value, result: Value, *,
             spoils: bool) -> None:  # fmt: skip
    """A row's scores against n_blocks blocks, which become exponentials: of tokens begin to end - 1, all others 0.

    Sets m and l of the row's result.

    spoils:  whether the exponential of NaN or infinity is NaN, rather than 0.
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
            score = v.f32(at, lanes) - m
            weight = v.exp(score)
            if spoils:
                weight = weight + (score - score)
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


def _of_keys(isa, kind: KVType):
    """How queries are taken, and scored against the keys of a block."""
    copy = staged(isa, "void", "i64", "i64", "i64", "f32")(copy_scaled)
    if not isinstance(kind, IntegerKV):

        @njit(error_model="numpy")
        def take_floats(x, key_dim, scale, out, spare):
            copy(x, out, key_dim, scale)

        return take_floats, _score(isa, kind)

    rotate = rotation(isa, kind)
    round_query = staged(isa, "void", *["i64"] * 3)(attention_integers.round_query)

    @njit(error_model="numpy")
    def take_integers(x, key_dim, scale, out, spare):
        copy(x, spare, key_dim, scale)
        rotate(spare, key_dim)
        round_query(spare, key_dim, out)

    return take_integers, _score(isa, kind)


def _score(isa, kind: KVType):
    """score(query, n_rows, key_dim, n_tokens, keys, following, scores, spare)"""
    if isinstance(kind, ChannelKeys):
        return staged(isa, "void", *["i64"] * 8)(partial(attention_channels.score, kind=kind))
    function: Callable[..., None] = attention_integers.score if isinstance(kind, IntegerKV) else attention_floats.score
    score_block = staged(isa, "void", *["i64"] * 7)(partial(function, kind=kind))

    @njit(error_model="numpy")
    def score(query, n_rows, key_dim, n_tokens, keys, following, scores, spare):
        score_block(query, n_rows, key_dim, n_tokens, keys, following, scores)

    return score


def _of_values(isa, kind: KVType):
    """How the values of a block are weighed."""
    if isinstance(kind, FloatKV):
        weigh_seen = staged(isa, "void", *["i64"] * 8)(partial(attention_floats.weigh, kind=kind))

        @njit(error_model="numpy")
        def weigh_floats(weights, n_rows, value_dim, begin, end, values, following, result, spare):
            weigh_seen(weights, n_rows, value_dim, begin, end, values, following, result)

        return weigh_floats

    assert isinstance(kind, IntegerKV)
    weigh_all = staged(isa, "void", *["i64"] * 7)(partial(attention_integers.weigh, kind=kind))

    @njit(error_model="numpy")
    def weigh_integers(weights, n_rows, value_dim, begin, end, values, following, result, spare):
        weigh_all(weights, n_rows, value_dim, values, following, result, spare)

    return weigh_integers


def build_attention(isa, kind: CacheType):
    """Pair p is key-value head p % n_kv_heads of task p // n_kv_heads; a chunk is chunk_heads of them."""
    op_at, task_at = record_viewer(ATTENTION), record_viewer(ATTENTION_TASK)
    m = memory(isa)
    load, load_i32, load_i64 = m.load_f32, m.load_i32, m.load_i64
    task_bytes = ATTENTION_TASK.dtype.itemsize
    take_query, score = _of_keys(isa, kind.keys)
    weigh, turn_back = _of_values(isa, kind.values), rotation(isa, kind.values)
    spoils = any(isinstance(part, IntegerKV | ChannelKeys) for part in kind)
    has_recent = kind.recent is not None
    recent = kind.recent or kind
    score_recent, weigh_recent = _score(isa, recent.keys), _of_values(isa, recent.values)
    softmax = staged(isa, "void", *["i64"] * 5)(partial(_softmax, spoils=spoils))
    copy = staged(isa, "void", "i64", "i64", "i64", "f32")(copy_scaled)
    merge = staged(isa, "void", *["i64"] * 4)(merge_results)
    clear = staged(isa, "void", *["i64"] * 3)(clear_results)
    begin_with = staged(isa, "void", "i64", "f32")(begin_with_score)
    cap = staged(isa, "void", "i64", "i64", "f32")(_cap)
    bias = staged(isa, "void", "i64", "i64", "i64", "f32")(_bias)

    @njit(error_model="numpy")
    def next_keys(op, pair, thread, otherwise):
        """Where the keys start that this thread is likely to need after this pair."""
        following, n_chunks = pair + 1, load_i64(op.chunk_count)
        if following in (n_chunks * op.chunk_heads, share_start(n_chunks, thread + 1, op.n_threads) * op.chunk_heads):
            return otherwise
        task = task_at(op.tasks + following // op.n_kv_heads * task_bytes)
        block = max(task.kv_begin, task.position - op.window + 1) // KV_BLOCK
        head = following % op.n_kv_heads * op.key_bytes
        return op.cache + load_i32(task.block_table + block * 4) * op.block_bytes + head

    @njit(error_model="numpy")
    def attend(op, pair, thread):
        task = task_at(op.tasks + pair // op.n_kv_heads * task_bytes)
        kv_head = pair % op.n_kv_heads
        key_dim, value_dim, group = op.key_dim, op.value_dim, op.group
        n_rows = task.n_tokens * group
        row_bytes = (value_dim + 2) * 4
        all_keys = op.cache + kv_head * op.key_bytes
        all_values = op.cache + op.n_kv_heads * op.key_bytes + kv_head * op.value_bytes

        # A token sees the keys and values of its own block as they were before it was full.
        own_block = task.position // KV_BLOCK
        recent_keys = op.recent + kv_head * op.recent_key_bytes
        recent_values = op.recent + op.n_kv_heads * op.recent_key_bytes + kv_head * op.recent_value_bytes

        query = op.scratch + thread * op.scratch_bytes
        result = query + n_rows * key_dim * 4
        total = result + n_rows * row_bytes
        scores = total + n_rows * row_bytes
        spare = scores + n_rows * SPAN_ROW_BYTES
        for row in range(n_rows):
            x = op.q + ((task.token + row // group) * op.q_stride + (kv_head * group + row % group) * key_dim) * 4
            take_query(x, key_dim, np.float32(op.scale), query + row * key_dim * 4, spare)

        # All positions that any token of the slice looks at; what single tokens must not see, softmax masks.
        first = max(task.kv_begin, task.position - op.window + 1)
        end = min(task.kv_end, task.position + task.n_tokens)
        first_span, end_of_spans = first // SPAN_TOKENS, (end + SPAN_TOKENS - 1) // SPAN_TOKENS
        is_alone = end_of_spans - first_span == 1 and op.sinks == 0  # its result is the total
        if is_alone:
            total = result
        else:
            clear(total, n_rows, value_dim)
        if op.sinks != 0:
            for row in range(n_rows):
                begin_with(total + row * row_bytes, load(op.sinks + (kv_head * group + row % group) * 4))
        for span in range(first_span, end_of_spans):
            begin_span, end_span = max(first, span * SPAN_TOKENS), min(end, (span + 1) * SPAN_TOKENS)
            clear(result, n_rows, value_dim)
            first_block, end_block = begin_span // KV_BLOCK, (end_span + KV_BLOCK - 1) // KV_BLOCK
            for block in range(first_block, end_block):
                keys = all_keys + load_i32(task.block_table + block * 4) * op.block_bytes
                if block + 1 < end_block:
                    following = all_keys + load_i32(task.block_table + (block + 1) * 4) * op.block_bytes
                else:
                    following = all_values + load_i32(task.block_table + first_block * 4) * op.block_bytes
                n_tokens = min(end_span - block * KV_BLOCK, KV_BLOCK)
                of_block = scores + (block - first_block) * KV_BLOCK * 4
                if has_recent and block == own_block:
                    keys = recent_keys + load_i32(task.recent_table + block * 4) * op.recent_block_bytes
                    score_recent(query, n_rows, key_dim, n_tokens, keys, following, of_block, spare)
                else:
                    score(query, n_rows, key_dim, n_tokens, keys, following, of_block, spare)

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
                    following = next_keys(op, pair, thread, values)
                begin, stop = max(begin_span - block * KV_BLOCK, 0), min(end_span - block * KV_BLOCK, KV_BLOCK)
                of_block = scores + (block - first_block) * KV_BLOCK * 4
                if has_recent and block == own_block:
                    values = recent_values + load_i32(task.recent_table + block * 4) * op.recent_block_bytes
                    weigh_recent(of_block, n_rows, value_dim, begin, stop, values, following, result, spare)
                else:
                    weigh(of_block, n_rows, value_dim, begin, stop, values, following, result, spare)
            for row in range(n_rows):
                turn_back(result + row * row_bytes + 8, value_dim)
            if task.slot < 0 and not is_alone:
                merge(result, total, n_rows, value_dim)

        if task.slot >= 0:  # a task of a single span: others will merge it
            for token in range(task.n_tokens):
                place = ((task.slot + token) * op.n_kv_heads + kv_head) * group
                own = result + token * group * row_bytes
                copy(own, op.partial + place * row_bytes, group * (value_dim + 2), np.float32(1))
            return
        for row in range(n_rows):
            sums = total + row * row_bytes + 8
            token, head = task.token + row // group, kv_head * group + row % group
            copy(sums, op.out + (token * op.out_stride + head * value_dim) * 4, value_dim,
                 np.float32(1) / load(sums - 4))  # fmt: skip

    def attention(record, chunk, thread):
        op = op_at(record)
        for pair in range(chunk * op.chunk_heads, (chunk + 1) * op.chunk_heads):
            attend(op, pair, thread)

    return attention
