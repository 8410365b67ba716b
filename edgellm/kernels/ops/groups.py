"""What sampling needs of every MAXIMA_GROUP logits in a row: the largest, how likely they are, their spread.

All three look at the groups that a list names, and within a group at the tokens whose bits are set in its word: others
must not come. Minus infinity is a logit too, of a token that must not come either. Groups are whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from operator import add

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import GROUP_LARGEST, GROUP_SPREAD, GROUP_WEIGHTS, MAXIMA_GROUP
from edgellm.kernels.staged import F64, I1, I16, I64, Value, Vocabulary, staged, vector

LANES = 16


def _logits(v: Vocabulary, x: Value, words: Value, group: Value) -> list[Value]:
    """Those of a group of the row at x, minus infinity where a bit is not set."""
    word, logits = v.load(words + group * 8, I64), []
    for at in range(0, MAXIMA_GROUP, LANES):
        bits = Value(v, v.builder.bitcast((word >> at).trunc(I16).llvm, vector(I1, LANES)))
        there = v.f32(x + group * (4 * MAXIMA_GROUP) + 4 * at, LANES)
        logits.append(v.select(bits, there, v.like(-inf, there)))
    return logits


def _each_group(
    v: Vocabulary, x: Value, words: Value, groups: Value, n: Value, do: Callable[[Value, Sequence[Value]], None]
) -> None:
    """do(i, logits) for n groups: the i-th of the list."""
    v.repeat(n, lambda i: do(i, _logits(v, x, words, v.load(groups + i * 8, I64))))


def _sum(lanes: Sequence[Value]) -> Value:
    """One register after the other."""
    total = lanes[0]
    for each in lanes[1:]:
        total = total + each
    return total


def _largest(v: Vocabulary, x: Value, words: Value, groups: Value, n: Value, out: Value) -> None:
    def group(i: Value, logits: Sequence[Value]) -> None:
        best = logits[0]
        for each in logits[1:]:
            best = v.maximum(each, best)
        v.store(out + i * 4, v.folded(best, v.maximum))

    _each_group(v, x, words, groups, n, group)


def build_group_largest(isa):
    op_at = record_viewer(GROUP_LARGEST)
    largest_of = staged(isa, "void", *["i64"] * 5)(_largest)

    def group_largest(record, chunk, thread):
        op = op_at(record)
        largest_of(op.x, op.words, op.groups, op.n_groups, op.out)

    return group_largest


def _weights(
    v: Vocabulary, x: Value, words: Value, groups: Value, n: Value, largest: Value, scale: Value, out: Value
) -> None:
    def group(i: Value, logits: Sequence[Value]) -> None:
        # An exponent that is no number, of minus infinity times a scale of 0, is the least one too.
        exponents = [v.maximum((each - largest) * scale, -88.0) for each in logits]
        weights = [v.exp(each) for each in exponents]
        v.store(out + i * 16, v.folded(_sum(weights), add).to(F64))
        products = [weight * exponent for weight, exponent in zip(weights, exponents, strict=True)]
        v.store(out + i * 16 + 8, v.folded(_sum(products), add).to(F64))

    _each_group(v, x, words, groups, n, group)


def build_group_weights(isa):
    op_at = record_viewer(GROUP_WEIGHTS)
    weights_of = staged(isa, "void", *["i64"] * 4, "f32", "f32", "i64")(_weights)

    def group_weights(record, chunk, thread):
        op = op_at(record)
        weights_of(op.x, op.words, op.groups, op.n_groups, np.float32(op.largest), np.float32(op.scale), op.out)

    return group_weights


def _spread(v: Vocabulary, x: Value, words: Value, groups: Value, n: Value, middle: Value, out: Value) -> None:
    def group(i: Value, *sums: Value) -> list[Value]:
        parts: list[list[Value]] = [[], [], []]
        for each in _logits(v, x, words, v.load(groups + i * 8, I64)):
            there, zero = v.greater(each, v.like(-inf, each)), v.like(0.0, each)
            rest = v.select(there, each - middle, zero)
            for part, value in zip(parts, (v.select(there, v.like(1.0, each), zero), rest, rest * rest), strict=True):
                part.append(value)
        return [total + _sum(part).to(F64) for total, part in zip(sums, parts, strict=True)]

    # Every lane has sums of its own, in float64 over the groups.
    for at, total in enumerate(v.loop(n, [v.constant(0.0, F64, LANES)] * 3, group)):
        v.store(out + 8 * at, v.folded(total, add))


def build_group_spread(isa):
    op_at = record_viewer(GROUP_SPREAD)
    spread_of = staged(isa, "void", *["i64"] * 4, "f32", "i64")(_spread)

    def group_spread(record, chunk, thread):
        op = op_at(record)
        spread_of(op.x, op.words, op.groups, op.n_groups, np.float32(op.middle), op.out)

    return group_spread
