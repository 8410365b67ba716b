"""A row of logits in groups of MAXIMA_GROUP: one token at random of all, a temperature, and other logits for some."""

from __future__ import annotations

from functools import cache
from math import inf
from types import SimpleNamespace

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.group_words import search_words
from edgellm.kernels.ops.groups import LANES, group_logits, group_weights, largest_of, largest_of_row, rest_words
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import (
    FILTER,
    GROUP_BITS,
    GROUP_CHANGE,
    GROUP_COOL,
    GROUP_DRAW,
    GROUPS_TOGETHER,
    LARGEST,
)
from edgellm.kernels.schema import WORD_BYTES
from edgellm.kernels.staged import F32, F64, staged

COOLEST = 1e-20  # a temperature; below it its inverse is too much for float32
SCALE_AT, PRODUCTS_AT = (list(GROUP_COOL.fields).index(name) * WORD_BYTES for name in ("scale", "with_products"))


def build_group_change(isa):
    op_at, rest_of = record_viewer(GROUP_CHANGE), rest_words(isa).rest_of
    words_of = memory(isa)
    load, store, load_i64, load_f64 = words_of.load_f32, words_of.store_f32, words_of.load_i64, words_of.load_f64
    load_i32, store_i32, store_i64 = words_of.load_i32, words_of.store_i32, words_of.store_i64
    store_f64 = words_of.store_f64

    @staged(isa, "f32", *["i64"] * 3)
    def largest(v, x, words, group):
        return largest_of(v, group_logits(v, x, words, group))

    @njit(error_model="numpy")
    def within(x):
        return min(max(x, -LARGEST), LARGEST)

    @njit(error_model="numpy")
    def changed(op, x, lost):
        if x == -inf or lost == inf:
            return -inf
        if op.temperature != 1:
            x = within(x / op.temperature)
        if op.repeat != 1:
            x = x / op.repeat if x > 0 else x * op.repeat
        x = within(x - lost)
        return x if op.temperature == 1 else within(x * op.temperature)

    @njit(error_model="numpy")
    def different(op):
        """How many tokens are left, which then are the first, with their numbers."""
        n = 0
        for i in range(op.n_tokens):
            token = load_i64(op.tokens + i * 8)
            if token >= 0 and token < op.n:
                count = 0
                if op.counts != 0:
                    count = load_i32(op.counts + token * 4)
                    store_i32(op.counts + token * 4, count + 1)
                else:
                    store_f64(op.numbers + n * 8, load_f64(op.numbers + i * 8))
                if count == 0:
                    store_i64(op.tokens + n * 8, token)
                    n += 1
        for i in range(n if op.counts != 0 else 0):
            at = op.counts + load_i64(op.tokens + i * 8) * 4
            store_f64(op.numbers + i * 8, np.float64(load_i32(at)))
            store_i32(at, 0)
        return n

    def group_change(record, chunk, thread):
        op = op_at(record)
        n = different(op)
        store_i64(op.found, n)
        for i in range(n):
            token = load_i64(op.tokens + i * 8)
            at = op.x + token * 4
            before = load(at)
            store(op.before + i * 4, before)
            store(op.maxima_before + i * 4, load(op.maxima + (token >> GROUP_BITS) * 4))
            store(at, np.float32(changed(op, np.float64(before), op.base + op.factor * load_f64(op.numbers + i * 8))))
        for i in range(n):
            token = load_i64(op.tokens + i * 8)
            group = token >> GROUP_BITS
            known = load(op.maxima + group * 4)
            if load(op.before + i * 4) == known or load(op.x + token * 4) > known:
                x = op.x if group < op.n // MAXIMA_GROUP else rest_of(op.x, op.n, op.rest)
                store(op.maxima + group * 4, largest(x, op.words, group))

    return group_change


@cache
def probability_words(isa) -> SimpleNamespace:
    """What is made of the sums of weights."""
    rest, load = rest_words(isa), memory(isa).load_f64
    n_groups_of = rest.n_groups_of

    @staged(isa, "f64", "f64")
    def log(v, x):
        """Of 1 or more."""
        return v.log(x)

    @staged(isa, "f64", "f64")
    def exp(v, x):
        """By float32."""
        return v.exp(x.to(F32)).to(F64)

    @njit(error_model="numpy")
    def of_all(op):
        """All chunks' parts together."""
        first = second = third = 0.0
        for i in range((n_groups_of(op.n) + GROUPS_TOGETHER - 1) // GROUPS_TOGETHER):
            first += load(op.parts + i * 24)
            second += load(op.parts + i * 24 + 8)
            third += load(op.parts + i * 24 + 16)
        return first, second, third

    @njit(error_model="numpy")
    def temperature_of(which, total, products, n):
        """By how even the probabilities of n tokens are; 1 where there is no choice."""
        if n < 2:
            return 1.0
        entropy = log(total) - products / total
        evenness = min(1.0, max(0.0, entropy / log(np.float64(n))))
        share = exp(-which.value * log(1 / evenness)) if evenness > 0 or which.value > 0 else 1.0
        return max(COOLEST, which.low + (which.high - which.low) * share)

    return SimpleNamespace(log=log, of_all=of_all, temperature_of=temperature_of)


def build_group_cool(isa):
    op_at, filter_at = record_viewer(GROUP_COOL), record_viewer(FILTER)
    words, store, store_i64 = probability_words(isa), memory(isa).store_f64, memory(isa).store_i64
    of_all, temperature_of = words.of_all, words.temperature_of

    def group_cool(record, chunk, thread):
        op = op_at(record)
        total, products, n = of_all(op)
        temperature = temperature_of(filter_at(op.filters), total, products, n)
        store(record + SCALE_AT, min(op.draw_scale / temperature, 1 / COOLEST))
        store_i64(record + PRODUCTS_AT, 0)

    return group_cool


def build_group_draw(isa):
    op_at, rest_of, n_groups_of = record_viewer(GROUP_DRAW), rest_words(isa).rest_of, rest_words(isa).n_groups_of
    words_of = memory(isa)
    load, store_i64 = words_of.load_f32, words_of.store_i64
    store_f64 = words_of.store_f64
    place_of, of_all = search_words(isa).place_of, probability_words(isa).of_all
    largest_of_all = staged(isa, "f32", "i64", "i64")(largest_of_row)

    @staged(isa, "void", *["i64"] * 3, "f32", "f32", "i64")
    def weights(v, x, words, group, largest, scale, out):
        _, found = group_weights(v, group_logits(v, x, words, group), largest, scale)
        for i, each in enumerate(found):
            v.store(out + i * 4 * LANES, each)

    def group_draw(record, chunk, thread):
        op = op_at(record)
        whole, n_groups = op.n // MAXIMA_GROUP, n_groups_of(op.n)
        n_chunks = (n_groups + GROUPS_TOGETHER - 1) // GROUPS_TOGETHER
        total, _, _ = of_all(op)
        store_i64(op.found, total > 0)
        if not total > 0:
            return
        aim = op.number * total
        part, before = place_of(aim, op.parts, 0, n_chunks, 24, True)
        aim -= before
        first = part * GROUPS_TOGETHER
        group, before = place_of(aim, op.sums, first, min(first + GROUPS_TOGETHER, n_groups), 4, False)
        share = (aim - before) / np.float64(load(op.sums + group * 4))
        # The last group is filled up in the place where weights stand next.
        x = op.x if group < whole else rest_of(op.x, op.n, op.rest)
        weights(x, op.words, group, largest_of_all(op.maxima, n_groups), np.float32(op.scale), op.rest)
        in_group = 0.0
        for i in range(MAXIMA_GROUP):
            in_group += np.float64(load(op.rest + i * 4))
        place, before = place_of(share * in_group, op.rest, 0, MAXIMA_GROUP, 4, False)
        token = group * MAXIMA_GROUP + place
        store_i64(op.found + 8, token)
        store_i64(op.found + 16, token)
        store_f64(op.share, np.float64(load(op.rest + place * 4)) / total)

    return group_draw
