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
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import F32, F64, I1, I16, I64, Value, Vocabulary, staged, vector

LANES = 16
GROUP_BYTES = 4 * MAXIMA_GROUP
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


def largest_of_row(v: Vocabulary, x: Value, n: Value) -> Value:
    """The largest of n float32; minus infinity if there are none."""
    wide = 4 * LANES  # so that a comparison need not wait for the one before
    start, whole = [v.constant(-inf, F32, LANES)] * 4, n / wide
    best = v.loop(
        whole,
        start,
        lambda i, *best: [v.maximum(v.f32(x + (i * wide + at * LANES) * 4, LANES), best[at]) for at in range(4)],
    )
    rest = x + whole * wide * 4
    return v.loop(n - whole * wide, [largest_of(v, best)], lambda i, best: [v.maximum(v.f32(rest + i * 4), best)])[0]


def group_weights(v: Vocabulary, logits: Sequence[Value], largest: Value, scale: Value) -> tuple[list[Value], ...]:
    """Exponents, and what they make of e: 0 of one that is no number, of minus infinity times a scale of 0."""
    exponents = [(each - largest) * scale for each in logits]
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

    @njit(error_model="numpy")
    def n_groups_of(n):
        return (n + MAXIMA_GROUP - 1) // MAXIMA_GROUP

    return SimpleNamespace(rest_of=rest_of, n_groups_of=n_groups_of)


def _in_chunks(isa, schema, of_groups):
    """A kernel: of_groups(op, x, first, stop, chunk) for the groups of a chunk, the last one of the row by itself."""
    op_at, rest_of, n_groups_of = record_viewer(schema), rest_words(isa).rest_of, rest_words(isa).n_groups_of

    def kernel(record, chunk, thread):
        op = op_at(record)
        whole, n_groups = op.n // MAXIMA_GROUP, n_groups_of(op.n)
        first, stop = chunk * GROUPS_TOGETHER, min((chunk + 1) * GROUPS_TOGETHER, n_groups)
        of_groups(op, op.x, first, min(stop, whole), chunk)
        if stop > whole:
            of_groups(op, rest_of(op.x, op.n, op.rest), whole, stop, chunk)

    return kernel


def _in_parts(isa, schema, of_groups):
    """The same for of_groups(op, x, first, stop, largest, parts), which adds to the chunk's own parts."""
    n_groups_of, store = rest_words(isa).n_groups_of, memory(isa).store_f64
    largest_of_all = staged(isa, "f32", "i64", "i64")(largest_of_row)

    @njit(error_model="numpy")
    def of_part(op, x, first, stop, chunk):
        parts = op.parts + chunk * 24
        if first == chunk * GROUPS_TOGETHER:
            for i in range(3):
                store(parts + 8 * i, 0.0)
        of_groups(op, x, first, stop, largest_of_all(op.maxima, n_groups_of(op.n)), parts)

    return _in_chunks(isa, schema, of_part)


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
    def staged_weights(with_products: bool):
        """Products and counts take a third of the time, and few ask for them."""

        @staged(isa, "void", *["i64"] * 4, "f32", "f32", "i64", "i64")
        def weights(v, x, words, first, stop, largest, scale, sums, parts):
            def group(at: Value, logits: Sequence[Value], sum_: Value, *rest: Value) -> list[Value]:
                exponents, weights = group_weights(v, logits, largest, scale)
                of_group = v.folded(total(weights), add)
                v.store(sums + at * 4, of_group)
                found = [sum_ + of_group.to(F64)]
                if with_products:
                    products, n = rest
                    pairs = zip(weights, exponents, strict=True)
                    of_products = total([weight * v.maximum(exponent, -88.0) for weight, exponent in pairs])
                    ones, zeros = v.constant(1.0, F32, LANES), v.constant(0.0, F32, LANES)
                    there = [v.select(v.greater(each, v.like(-inf, each)), ones, zeros) for each in logits]
                    found += [products + of_products.to(F64), n + total(there)]
                return found

            start = [v.load(parts, F64)]
            if with_products:
                start += [v.constant(0.0, F64, LANES), v.constant(0.0, F32, LANES)]
            sum_, *rest = each_group(v, x, words, first, stop, start, group)
            v.store(parts, sum_)
            for at, each in enumerate(rest, start=1):
                v.store(parts + 8 * at, v.load(parts + 8 * at, F64) + v.folded(each, add).to(F64))

        return weights

    weights, weights_and_products = staged_weights(False), staged_weights(True)

    @njit(error_model="numpy")
    def of_groups(op, x, first, stop, largest, parts):
        scale = np.float32(op.scale)
        if op.with_products:
            weights_and_products(x, op.words, first, stop, largest, scale, op.sums, parts)
        else:
            weights(x, op.words, first, stop, largest, scale, op.sums, parts)

    return _in_parts(isa, GROUP_WEIGHTS, of_groups)


def build_group_spread(isa):
    @staged(isa, "void", *["i64"] * 4, "f32", "i64")
    def spread(v, x, words, first, stop, largest, parts_at):
        def group(at: Value, logits: Sequence[Value], *sums: Value) -> list[Value]:
            parts: list[list[Value]] = [[], [], []]
            for each in logits:
                there, zero = v.greater(each, v.like(-inf, each)), v.like(0.0, each)
                rest = v.select(there, each - largest, zero)
                for part, value in zip(
                    parts, (v.select(there, v.like(1.0, each), zero), rest, rest * rest), strict=True
                ):
                    part.append(value)
            return [sum_ + total(part).to(F64) for sum_, part in zip(sums, parts, strict=True)]

        # Every lane has sums of its own, in float64 over the groups.
        sums = each_group(v, x, words, first, stop, [v.constant(0.0, F64, LANES)] * 3, group)
        for at, sum_ in enumerate(sums):
            v.store(parts_at + 8 * at, v.load(parts_at + 8 * at, F64) + v.folded(sum_, add))

    @njit(error_model="numpy")
    def of_groups(op, x, first, stop, largest, parts):
        spread(x, op.words, first, stop, largest, parts)

    return _in_parts(isa, GROUP_SPREAD, of_groups)
