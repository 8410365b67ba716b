"""Gradients of what is done to rows of a mixture of experts: of routers, weighted sums, gates and biases."""

from __future__ import annotations

import numpy as np
from numba import njit

from edgellm.kernels.expert_gradient_records import (
    BALANCE_GRADIENT,
    EXPERT_BIAS_SUM,
    GATE_BACKWARD,
    ROUTE_BACKWARD,
    SUM_EXPERTS_BACKWARD,
)
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.expert_rows import expert_finder
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.route import LEAST_SUM, score_words, sigmoid
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, Value, staged


def build_route_backward(isa, scoring):
    """By the logits, from the gradient by the weights; which experts are chosen is taken for given."""
    op_at, expert_of = record_viewer(ROUTE_BACKWARD), expert_finder(isa)
    words, of_scores = memory(isa), score_words(isa)
    load, store, clear = words.load_f32, words.store_f32, words.clear_f32
    softmax, sigmoids = of_scores.softmax, of_scores.sigmoids
    is_softmax, is_sigmoid = scoring == "softmax", scoring == "sigmoid"

    @njit(error_model="numpy")
    def by_scores(op, token, scores, gradients):
        """gradients: by the scores of the chosen experts, which are normalized, scaled and multiplied."""
        dy, n = op.dy + token * op.dy_stride * 4, op.n_used
        for i in range(n):
            by = np.float32(op.scale)
            if op.scales != 0:
                by *= load(op.scales + expert_of(op, token * n + i) * 4)
            store(gradients + i * 4, load(dy + i * 4) * by)
        if op.normalize == 1:
            total, products = np.float32(0), np.float32(0)
            for i in range(n):
                total += load(scores + i * 4)
                products += load(scores + i * 4) * load(gradients + i * 4)
            share = products / total
            if total < LEAST_SUM:  # divided by LEAST_SUM, whatever they are
                total, share = np.float32(LEAST_SUM), np.float32(0)
            for i in range(n):
                store(gradients + i * 4, (load(gradients + i * 4) - share) / total)

    def route_backward(record, chunk, thread):
        op = op_at(record)
        n = op.n_used
        all_scores = op.scratch + thread * op.scratch_bytes
        scores = all_scores + op.n_experts * 4
        gradients = scores + n * 4
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            logits, out = op.logits + token * op.stride * 4, op.out + token * op.stride * 4
            if is_softmax:
                softmax(logits, all_scores, op.n_experts)
            elif is_sigmoid:
                sigmoids(logits, all_scores, op.n_experts)
            for i in range(n):
                at = expert_of(op, token * n + i) * 4
                store(scores + i * 4, load((all_scores if is_softmax or is_sigmoid else logits) + at))
            if not (is_softmax or is_sigmoid):
                softmax(scores, scores, n)
            by_scores(op, token, scores, gradients)
            clear(out, op.n_experts)
            products = np.float32(0)
            if not is_sigmoid:
                for i in range(n):
                    products += load(scores + i * 4) * load(gradients + i * 4)
            if is_softmax:
                for i in range(op.n_experts):
                    store(out + i * 4, -products * load(all_scores + i * 4))
            for i in range(n):
                at, score, gradient = expert_of(op, token * n + i) * 4, load(scores + i * 4), load(gradients + i * 4)
                if is_softmax:
                    store(out + at, load(out + at) + score * gradient)
                elif is_sigmoid:
                    store(out + at, score * (np.float32(1) - score) * gradient)
                else:
                    store(out + at, score * (gradient - products))

    return route_backward


def build_balance_gradient(isa):
    """By the logits, of the loss for equally many tokens of each expert; in one chunk, for it takes microseconds.

    scale * n_experts / T * p (F - F . p) for each of T tokens with softmax p; F are shares of tokens.
    """
    op_at, expert_of = record_viewer(BALANCE_GRADIENT), expert_finder(isa)
    words, softmax = memory(isa), score_words(isa).softmax
    load, store, clear, add = words.load_f32, words.store_f32, words.clear_f32, words.add_f32
    dot = staged(isa, "f32", "i64", "i64", "i64")(_dot)

    @staged(isa, "void", "i64", "i64", "f32", "f32", "i64")
    def differences(v, p, counts, mean, by, n):
        def part(i: Value, lanes: int) -> None:
            own = v.f32(p + i * 4, lanes)
            v.store(p + i * 4, own * (v.f32(counts + i * 4, lanes) - mean) * by)

        v.elements(n, ROW_ALIGN, part)

    def balance_gradient(record, chunk, thread):
        op = op_at(record)
        n, n_tokens = op.n_experts, op.batch.n_tokens
        counts, sums = op.seen, op.seen + n * 4
        clear(op.seen, 2 * n)
        for pair in range(n_tokens * op.n_used):
            at = counts + expert_of(op, pair) * 4
            store(at, load(at) + np.float32(1))
        by = np.float32(load(op.scale) * n / np.float32(n_tokens) / np.float32(n_tokens))
        for token in range(n_tokens):
            p = op.out + token * op.stride * 4
            softmax(op.logits + token * op.stride * 4, p, n)
            add(sums, p, sums, n)
            differences(p, counts, dot(counts, p, n), by, n)

    return balance_gradient


def _dot(v, a, b, n):
    """float32: by lanes first, then over the lanes and what is left."""
    n_whole = n / ROW_ALIGN

    def add(i: Value, lanes: int, total: Value) -> list[Value]:
        return [v.fma(v.f32(a + i * 4, lanes), v.f32(b + i * 4, lanes), total)]

    start = v.constant(0.0, F32, ROW_ALIGN)
    (lanes,) = v.loop(n_whole, [start], lambda i, total: add(i * ROW_ALIGN, ROW_ALIGN, total))
    rest = n_whole * ROW_ALIGN
    (total,) = v.loop(n - rest, [lanes.sum()], lambda i, total: add(rest + i, 1, total))
    return total


def build_sum_experts_backward(isa):
    """By the results of a token's pairs, weight * dy, and by their weights, x . dy."""
    op_at = record_viewer(SUM_EXPERTS_BACKWARD)
    store = memory(isa).store_f32
    dot = staged(isa, "f32", "i64", "i64", "i64")(_dot)

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def multiply(v, dy, weight, out, n):
        by = v.f32(weight)
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, v.f32(dy + i * 4, lanes) * by))

    def sum_experts_backward(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            dy = op.dy + token * op.dy_stride * 4
            for slot in range(op.n_used):
                at, of_pair = (token * op.stride + slot * op.n_cols) * 4, (token * op.weights_stride + slot) * 4
                store(op.d_weights + of_pair, dot(op.x + at, dy, op.n_cols))
                multiply(dy, op.weights + of_pair, op.d_x + at, op.n_cols)

    return sum_experts_backward


def build_gate_backward(isa):
    """By both of x * sigmoid(gate)."""
    op_at = record_viewer(GATE_BACKWARD)
    store = memory(isa).store_f32
    dot = staged(isa, "f32", "i64", "i64", "i64")(_dot)

    @staged(isa, "f32", "i64")
    def slope_of_one(v, gate):
        s = sigmoid(v, v.f32(gate))
        return s * (-s + 1.0)

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def by_one(v, dy, gate, d_x, n):
        s = sigmoid(v, v.f32(gate))
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(d_x + i * 4, v.f32(dy + i * 4, lanes) * s))

    @staged(isa, "void", *["i64"] * 6)
    def by_each(v, x, dy, gate, d_x, d_gate, n):
        def part(i: Value, lanes: int) -> None:
            s = sigmoid(v, v.f32(gate + i * 4, lanes))
            own, gradient = v.f32(x + i * 4, lanes), v.f32(dy + i * 4, lanes)
            v.store(d_gate + i * 4, gradient * own * s * (-s + 1.0))
            v.store(d_x + i * 4, gradient * s)

        v.elements(n, ROW_ALIGN, part)

    def gate_backward(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at, of_gate = token * op.stride * 4, token * op.gate_stride * 4
            x, dy, gate = op.x + at, op.dy + at, op.gate + of_gate
            if op.is_one == 1:
                store(op.d_gate + of_gate, dot(x, dy, op.n_cols) * slope_of_one(gate))
                by_one(dy, gate, op.d_x + at, op.n_cols)
            else:
                by_each(x, dy, gate, op.d_x + at, op.d_gate + of_gate, op.n_cols)

    return gate_backward


def build_expert_bias_sum(isa):
    """sums [n_experts, n_cols] += x, pair after pair; a chunk is some columns of all experts."""
    op_at, expert_of, add = record_viewer(EXPERT_BIAS_SUM), expert_finder(isa), memory(isa).add_f32

    def expert_bias_sum(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_cols
        n_cols = min(op.chunk_cols, op.n_cols - first)
        for pair in range(op.batch.n_tokens * op.n_used):
            x = op.x + (pair // op.n_used * op.stride + pair % op.n_used * op.n_cols + first) * 4
            sums = op.sums + (expert_of(op, pair) * op.n_cols + first) * 4
            add(sums, x, sums, n_cols)

    return expert_bias_sum
