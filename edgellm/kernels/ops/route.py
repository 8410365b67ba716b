"""Routing: which experts each token has, and how much of each.

Scores are the logits (`logits`), their logistic (`sigmoid`) or their softmax over all experts (`softmax`). Experts are
chosen by score plus bias; what they count is their score alone, and for `logits` the softmax over those chosen.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import njit

from edgellm.kernels.expert_records import ROUTE
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import F32, Value, Vocabulary, staged

LEAST_SUM = 1e-20  # weights that add up to less are not made larger any more


def sigmoid(v: Vocabulary, x: Value) -> Value:
    """NaN where x is."""
    return _or_nan(v, x, v.like(1.0, x) / (v.exp(-x) + 1.0))


def _or_nan(v: Vocabulary, x: Value, result: Value) -> Value:
    """The result, but NaN where x is: `exp` makes 0 of that, and the damage would not be seen."""
    return v.select(Value(v, v.builder.fcmp_unordered("uno", x.llvm, x.llvm)), x, result)


def _exponentials(v: Vocabulary, x: Value, largest: Value, out: Value, n: Value) -> Value:
    """out = exp(x - largest); returns their sum."""

    def part(i: Value, lanes: int) -> Value:
        difference = v.f32(x + i * 4, lanes) - largest
        result = _or_nan(v, difference, v.exp(difference))
        v.store(out + i * 4, result)
        return result

    n_whole = n / ROW_ALIGN * ROW_ALIGN
    start = v.constant(0.0, F32, ROW_ALIGN)
    (sums,) = v.loop(n / ROW_ALIGN, [start], lambda i, total: [total + part(i * ROW_ALIGN, ROW_ALIGN)])
    (total,) = v.loop(n - n_whole, [sums.sum()], lambda i, total: [total + part(i + n_whole, 1)])
    return total


@cache
def score_words(isa) -> SimpleNamespace:
    """What makes scores of logits: softmax(x, out, n), sigmoids(x, out, n), and best_of(x, n)."""
    words = memory(isa)
    load, store = words.load_f32, words.store_f32

    @staged(isa, "f32", "i64", "f32", "i64", "i64")
    def exponentials(v, x, largest, out, n):
        return _exponentials(v, x, largest, out, n)

    @staged(isa, "void", "i64", "i64", "i64")
    def sigmoids(v, x, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, sigmoid(v, v.f32(x + i * 4, lanes))))

    @njit(error_model="numpy")
    def best_of(x, n):
        """The place of the largest of n numbers, the first of equals; NaN is chosen only where nothing else is."""
        best = 0
        for i in range(1, n):
            found, so_far = load(x + i * 4), load(x + best * 4)
            if found > so_far or (so_far != so_far and found == found):
                best = i
        return best

    @njit(error_model="numpy")
    def softmax(x, out, n):
        total = exponentials(x, load(x + best_of(x, n) * 4), out, n)
        for i in range(n):
            store(out + i * 4, load(out + i * 4) / total)

    return SimpleNamespace(softmax=softmax, sigmoids=sigmoids, best_of=best_of)


def build_route(isa, scoring):
    op_at, of_scores = record_viewer(ROUTE), score_words(isa)
    words = memory(isa)
    load, store = words.load_f32, words.store_f32
    softmax, sigmoids, best_of = of_scores.softmax, of_scores.sigmoids, of_scores.best_of

    @njit(error_model="numpy")
    def keep_best_groups(op, choice, goodness):
        """Put all experts of other groups out of the choice."""
        size = op.n_experts // op.n_groups
        for group in range(op.n_groups):
            members = choice + group * size * 4
            total = np.float32(0)
            # The few best, one after the other, without changing anything.
            last, last_place = np.float32(np.inf), -1
            for _ in range(op.n_ranked):
                best, place = np.float32(-np.inf), size
                for i in range(size):
                    found = load(members + i * 4)
                    comes_after = found < last or (found == last and i > last_place)
                    if comes_after and (found > best or (found == best and i < place)):
                        best, place = found, i
                total += best
                last, last_place = best, place
            store(goodness + group * 4, total)
        for _ in range(op.n_groups_used):
            store(goodness + best_of(goodness, op.n_groups) * 4, np.float32(np.nan))
        for group in range(op.n_groups):
            if load(goodness + group * 4) == load(goodness + group * 4):
                for i in range(group * size, (group + 1) * size):
                    store(choice + i * 4, np.float32(-np.inf))

    @njit(error_model="numpy")
    def weigh(op, weights, n):
        """Make the weights of a token add up to one, and scale them."""
        if op.normalize == 1:
            total = np.float32(0)
            for i in range(n):
                total += load(weights + i * 4)
            if total < LEAST_SUM:
                total = np.float32(LEAST_SUM)
            for i in range(n):
                store(weights + i * 4, load(weights + i * 4) / total)
        if op.scale != 1:
            for i in range(n):
                store(weights + i * 4, load(weights + i * 4) * np.float32(op.scale))

    is_softmax, is_sigmoid = scoring == "softmax", scoring == "sigmoid"

    def route(record, chunk, thread):
        op = op_at(record)
        n = op.n_experts
        scores = op.scratch + thread * op.scratch_bytes
        choice = scores + n * 4
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            logits = op.logits + token * op.stride * 4
            chosen, weights = op.chosen + token * op.out_stride * 4, op.weights + token * op.out_stride * 4
            if is_softmax:
                softmax(logits, scores, n)
            elif is_sigmoid:
                sigmoids(logits, scores, n)
            else:
                for i in range(n):
                    store(scores + i * 4, load(logits + i * 4))
            for i in range(n):
                score = load(scores + i * 4)
                store(choice + i * 4, score + load(op.bias + i * 4) if op.bias != 0 else score)
            if op.n_groups_used < op.n_groups:
                keep_best_groups(op, choice, choice + n * 4)
            for i in range(op.n_used):
                best = best_of(choice, n)
                store(chosen + i * 4, np.float32(best))
                store(weights + i * 4, load(scores + best * 4))
                store(choice + best * 4, np.float32(np.nan))  # it is not chosen again
            if not (is_softmax or is_sigmoid):
                softmax(weights, weights, op.n_used)
            weigh(op, weights, op.n_used)
            if op.scales != 0:
                for i in range(op.n_used):
                    by = load(op.scales + np.int64(load(chosen + i * 4)) * 4)
                    store(weights + i * 4, load(weights + i * 4) * by)

    return route
