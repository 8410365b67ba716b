"""What sampling needs of all logits, in groups of MAXIMA_GROUP: the largest of each, how likely they are, their spread.

Within a group, tokens whose bits are not set in its word must not come: their logits are taken for minus infinity,
which a logit may be too. Several threads share a pass; what a chunk gives does not depend on which of them has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from operator import add
from types import SimpleNamespace

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import GROUP_LARGEST, GROUP_SPREAD, GROUP_WEIGHTS, GROUPS_TOGETHER
from edgellm.kernels.staged import F32, F64, I1, I16, I64, Value, Vocabulary, staged, vector

LANES = 16
GROUP_BYTES = 4 * MAXIMA_GROUP
LINE = 64  # bytes
AHEAD = 16  # groups that are asked for while one is computed: memory answers late, and not by itself across pages


def group_logits(v: Vocabulary, x: Value, words: Value, group: Value) -> list[Value]:
    """Those of a group of the row at x, minus infinity where a bit is not set."""
    word, logits = v.load(words + group * 8, I64), []
    for at in range(0, MAXIMA_GROUP, LANES):
        bits = Value(v, v.builder.bitcast((word >> at).trunc(I16).llvm, vector(I1, LANES)))
        there = v.f32(x + group * GROUP_BYTES + 4 * at, LANES)
        logits.append(v.select(bits, there, v.like(-inf, there)))
    return logits


def largest_of(v: Vocabulary, logits: Sequence[Value]) -> Value:
    best = logits[0]
    for each in logits[1:]:
        best = v.maximum(each, best)
    return v.folded(best, v.maximum)


def group_weights(v: Vocabulary, logits: Sequence[Value], largest: Value, scale: Value) -> tuple[list[Value], ...]:
    """Exponents, of least -88, and what they make of e."""
    # An exponent that is no number, of minus infinity times a scale of 0, is the least one too.
    exponents = [v.maximum((each - largest) * scale, -88.0) for each in logits]
    return exponents, [v.exp(each) for each in exponents]


def total(lanes: Sequence[Value]) -> Value:
    """One register after the other."""
    result = lanes[0]
    for each in lanes[1:]:
        result = result + each
    return result


def each_group(
    v: Vocabulary,
    x: Value,
    words: Value,
    first: Value,
    stop: Value,
    carried: Sequence[Value],
    body: Callable[..., Sequence[Value]],
) -> list[Value]:
    """carried = body(group, logits, *carried) for every group from the first on."""

    def one(i: Value, *carried: Value) -> Sequence[Value]:
        group = first + i
        for at in range(0, GROUP_BYTES, LINE):
            v.prefetch(x + (group + AHEAD) * GROUP_BYTES + at)
        return body(group, group_logits(v, x, words, group), *carried)

    return v.loop(stop - first, carried, one)


@cache
def rest_words(isa) -> SimpleNamespace:
    """rest_of(x, n, rest): fill the last group up, which is smaller; where it is then, as if it were in the row."""
    words = memory(isa)
    load, store = words.load_f32, words.store_f32

    @njit(error_model="numpy")
    def rest_of(x, n, rest):
        whole = n // MAXIMA_GROUP
        for i in range(MAXIMA_GROUP):
            at = whole * MAXIMA_GROUP + i
            store(rest + i * 4, load(x + at * 4) if at < n else np.float32(-inf))
        return rest - whole * GROUP_BYTES

    return SimpleNamespace(rest_of=rest_of)


def _in_chunks(isa, schema, of_groups):
    """A kernel: of_groups(op, x, first, stop, chunk) for the groups of a chunk, the last one of the row by itself."""
    op_at, rest_of = record_viewer(schema), rest_words(isa).rest_of

    def kernel(record, chunk, thread):
        op = op_at(record)
        whole, n_groups = op.n // MAXIMA_GROUP, (op.n + MAXIMA_GROUP - 1) // MAXIMA_GROUP
        first, stop = chunk * GROUPS_TOGETHER, min((chunk + 1) * GROUPS_TOGETHER, n_groups)
        of_groups(op, op.x, first, min(stop, whole), chunk)
        if stop > whole:
            of_groups(op, rest_of(op.x, op.n, op.rest), whole, stop, chunk)

    return kernel


def build_group_largest(isa):
    @staged(isa, "void", *["i64"] * 5)
    def largest(v, x, words, first, stop, out):
        def group(at: Value, logits: Sequence[Value]) -> list[Value]:
            v.store(out + at * 4, largest_of(v, logits))
            return []

        each_group(v, x, words, first, stop, [], group)

    words_of = memory(isa)
    load, load_word, store = words_of.load_f32, words_of.load_i64, words_of.store_f32

    @njit(error_model="numpy")
    def of_groups(op, x, first, stop, chunk):
        for group in range(first, stop):
            word = load_word(op.words + group * 8)
            if word == 0:
                store(op.maxima + group * 4, np.float32(-inf))
            elif word == -1 and op.known != 0:
                store(op.maxima + group * 4, load(op.known + group * 4))
            else:
                largest(x, op.words, group, group + 1, op.maxima)

    return _in_chunks(isa, GROUP_LARGEST, of_groups)


def build_group_weights(isa):
    @staged(isa, "void", *["i64"] * 4, "f32", "f32", "i64", "i64")
    def weights(v, x, words, first, stop, largest, scale, sums, parts):
        def group(at: Value, logits: Sequence[Value], sum_: Value, products: Value, n: Value) -> list[Value]:
            exponents, weights = group_weights(v, logits, largest, scale)
            of_group = v.folded(total(weights), add)
            v.store(sums + at * 4, of_group)
            of_products = total([weight * exponent for weight, exponent in zip(weights, exponents, strict=True)])
            ones, zeros = v.constant(1.0, F32, LANES), v.constant(0.0, F32, LANES)
            there = [v.select(v.greater(each, v.like(-inf, each)), ones, zeros) for each in logits]
            return [sum_ + of_group.to(F64), products + of_products.to(F64), n + total(there)]

        start = [v.load(parts, F64), v.constant(0.0, F64, LANES), v.constant(0.0, F32, LANES)]
        sum_, products, n = each_group(v, x, words, first, stop, start, group)
        v.store(parts, sum_)
        v.store(parts + 8, v.load(parts + 8, F64) + v.folded(products, add))
        v.store(parts + 16, v.load(parts + 16, F64) + v.folded(n, add).to(F64))

    @njit(error_model="numpy")
    def of_groups(op, x, first, stop, chunk):
        weights(x, op.words, first, stop, np.float32(op.largest), np.float32(op.scale), op.sums, op.parts + chunk * 24)

    return _in_chunks(isa, GROUP_WEIGHTS, of_groups)


def build_group_spread(isa):
    @staged(isa, "void", *["i64"] * 4, "f32", "i64")
    def spread(v, x, words, first, stop, middle, out):
        def group(at: Value, logits: Sequence[Value], *sums: Value) -> list[Value]:
            parts: list[list[Value]] = [[], [], []]
            for each in logits:
                there, zero = v.greater(each, v.like(-inf, each)), v.like(0.0, each)
                rest = v.select(there, each - middle, zero)
                for part, value in zip(
                    parts, (v.select(there, v.like(1.0, each), zero), rest, rest * rest), strict=True
                ):
                    part.append(value)
            return [sum_ + total(part).to(F64) for sum_, part in zip(sums, parts, strict=True)]

        # Every lane has sums of its own, in float64 over the groups.
        sums = each_group(v, x, words, first, stop, [v.constant(0.0, F64, LANES)] * 3, group)
        for at, sum_ in enumerate(sums):
            v.store(out + 8 * at, v.load(out + 8 * at, F64) + v.folded(sum_, add))

    @njit(error_model="numpy")
    def of_groups(op, x, first, stop, chunk):
        spread(x, op.words, first, stop, np.float32(op.middle), op.out + chunk * 24)

    return _in_chunks(isa, GROUP_SPREAD, of_groups)
