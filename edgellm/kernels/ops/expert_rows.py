"""What is done to rows of a mixture of experts: biases, the weighted sum, gates, squares; and sorting by expert."""

from __future__ import annotations

from numba import njit

from edgellm.kernels.expert_records import ADD_EXPERT_BIAS, GATE, SORT_EXPERTS, SUM_EXPERT_SQUARES, SUM_EXPERTS
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.route import sigmoid
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, F64, Value, staged


def expert_finder(isa):
    """expert_of(op, pair): whatever a row holds, a number that an expert has."""
    load_f32 = memory(isa).load_f32

    @njit(error_model="numpy")
    def expert_of(op, pair):
        slot = pair % op.n_used
        if op.chosen == 0:
            return slot
        found = load_f32(op.chosen + (pair // op.n_used * op.chosen_stride + slot) * 4)
        return int(found) if found >= 0 and found < op.n_experts else 0

    return expert_of


def build_sort_experts(isa):
    """All pairs, expert by expert: in one chunk, for it takes microseconds."""
    op_at, expert_of = record_viewer(SORT_EXPERTS), expert_finder(isa)
    words = memory(isa)
    load, store = words.load_i64, words.store_i64

    def sort_experts(record, chunk, thread):
        op = op_at(record)
        n_pairs = op.batch.n_tokens * op.n_used
        for expert in range(op.n_experts):
            store(op.ends + expert * 8, 0)
        for pair in range(n_pairs):
            at = op.ends + expert_of(op, pair) * 8
            store(at, load(at) + 1)
        total = 0
        for expert in range(op.n_experts):
            count = load(op.ends + expert * 8)
            store(op.ends + expert * 8, total)
            total += count
        for pair in range(n_pairs):
            at = op.ends + expert_of(op, pair) * 8
            place = load(at)
            store(op.order + place * 8, pair)
            store(at, place + 1)

    return sort_experts


def build_add_expert_bias(isa):
    """out = x + bias of each pair's expert; out may be x."""
    op_at, expert_of = record_viewer(ADD_EXPERT_BIAS), expert_finder(isa)
    add_elements = memory(isa).add_f32

    def add_expert_bias(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            for slot in range(op.n_used):
                bias = op.bias + expert_of(op, token * op.n_used + slot) * op.n_cols * 4
                at = (token * op.stride + slot * op.n_cols) * 4
                add_elements(op.x + at, bias, op.out + at, op.n_cols)

    return add_expert_bias


def build_sum_experts(isa):
    """out = sum of weight * x over a token's pairs, first to last."""
    op_at = record_viewer(SUM_EXPERTS)

    @staged(isa, "void", "i64", "i64", "i64", "i64", "i64")
    def add_pairs(v, x, weights, out, n_used, n):
        def columns(i: Value, lanes: int) -> None:
            def add(slot: Value, total: Value) -> list[Value]:
                return [v.fma(v.f32(x + (slot * n + i) * 4, lanes), v.f32(weights + slot * 4), total)]

            (total,) = v.loop(n_used, [v.constant(0.0, F32, lanes)], add)
            v.store(out + i * 4, total)

        v.elements(n, ROW_ALIGN, columns)

    def sum_experts(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            add_pairs(
                op.x + token * op.stride * 4,
                op.weights + token * op.weights_stride * 4,
                op.out + token * op.out_stride * 4,
                op.n_used,
                op.n_cols,
            )

    return sum_experts


def build_gate(isa):
    """out = x * sigmoid(gate); out may be x."""
    op_at = record_viewer(GATE)

    @staged(isa, "void", "i64", "i64", "i64", "i64", "i64")
    def multiply(v, x, gate, out, n, is_one):
        def part(i: Value, lanes: int) -> None:
            factor = sigmoid(v, v.f32(gate + i * 4, lanes))
            v.store(out + i * 4, v.f32(x + i * 4, lanes) * factor)

        def by_one(_: Value) -> None:
            factor = sigmoid(v, v.f32(gate))
            v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * factor))

        v.repeat(is_one, by_one)
        v.repeat(v.like(1, is_one) - is_one, lambda _: v.elements(n, ROW_ALIGN, part))

    def gate(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            multiply(op.x + at, op.gate + token * op.gate_stride * 4, op.out + at, op.n_cols, op.is_one)

    return gate


def build_sum_expert_squares(isa):
    """sums += the squares of what each expert is given, pair after pair; a chunk is some columns of all experts."""
    op_at, expert_of = record_viewer(SUM_EXPERT_SQUARES), expert_finder(isa)

    @staged(isa, "void", "i64", "i64", "i64")
    def add_squares(v, x, sums, n):
        def part(i: Value, lanes: int) -> None:
            numbers = v.f32(x + i * 4, lanes).to(F64)
            v.store(sums + i * 8, v.load(sums + i * 8, F64, lanes) + numbers * numbers)

        v.elements(n, ROW_ALIGN, part)

    @staged(isa, "void", "i64")
    def count(v, address):
        v.store(address, v.load(address, F64) + 1.0)

    def sum_expert_squares(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        for pair in range(op.batch.n_tokens * op.n_used):
            expert, slot = expert_of(op, pair), pair % op.n_used if op.x_parts > 1 else 0
            x = op.x + (pair // op.n_used * op.stride + slot * op.n_cols + first) * 4
            add_squares(x, op.sums + (expert * op.n_cols + first) * 8, n_cols)
            if chunk == 0:
                count(op.counts + expert * 8)

    return sum_expert_squares
