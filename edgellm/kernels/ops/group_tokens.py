"""Single tokens of a row of logits in groups of MAXIMA_GROUP: one at random of all, and other logits for some."""

from __future__ import annotations

from math import inf

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.group_words import search_words
from edgellm.kernels.ops.groups import LANES, group_logits, group_weights, largest_of, rest_words
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import GROUP_BITS, GROUP_CHANGE, GROUP_DRAW, GROUPS_TOGETHER, LARGEST
from edgellm.kernels.staged import staged


def build_group_change(isa):
    op_at, rest_of = record_viewer(GROUP_CHANGE), rest_words(isa).rest_of
    words_of = memory(isa)
    load, store, load_i64, load_f64 = words_of.load_f32, words_of.store_f32, words_of.load_i64, words_of.load_f64

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

    def group_change(record, chunk, thread):
        op = op_at(record)
        for i in range(op.n_changed):
            at = op.x + load_i64(op.tokens + i * 8) * 4
            before = load(at)
            store(op.before + i * 4, before)
            store(at, np.float32(changed(op, np.float64(before), op.base + op.factor * load_f64(op.numbers + i * 8))))
        for i in range(op.n_changed):
            token = load_i64(op.tokens + i * 8)
            group = token >> GROUP_BITS
            known = load(op.maxima + group * 4)
            if load(op.before + i * 4) == known or load(op.x + token * 4) > known:
                x = op.x if group < op.n // MAXIMA_GROUP else rest_of(op.x, op.n, op.rest)
                store(op.maxima + group * 4, largest(x, op.words, group))

    return group_change


def build_group_draw(isa):
    op_at, rest_of = record_viewer(GROUP_DRAW), rest_words(isa).rest_of
    words_of = memory(isa)
    load, store_i64 = words_of.load_f32, words_of.store_i64
    load_f64, store_f64 = words_of.load_f64, words_of.store_f64
    place_of = search_words(isa).place_of

    @staged(isa, "void", *["i64"] * 3, "f32", "f32", "i64")
    def weights(v, x, words, group, largest, scale, out):
        _, found = group_weights(v, group_logits(v, x, words, group), largest, scale)
        for i, each in enumerate(found):
            v.store(out + i * 4 * LANES, each)

    def group_draw(record, chunk, thread):
        op = op_at(record)
        whole, n_groups = op.n // MAXIMA_GROUP, (op.n + MAXIMA_GROUP - 1) // MAXIMA_GROUP
        n_chunks = (n_groups + GROUPS_TOGETHER - 1) // GROUPS_TOGETHER
        total = 0.0
        for i in range(n_chunks):
            total += load_f64(op.parts + i * 24)
        aim = op.number * total
        part, before = place_of(aim, op.parts, 0, n_chunks, 24, True)
        aim -= before
        first = part * GROUPS_TOGETHER
        group, before = place_of(aim, op.sums, first, min(first + GROUPS_TOGETHER, n_groups), 4, False)
        share = (aim - before) / np.float64(load(op.sums + group * 4))
        # The last group is filled up in the place where weights stand next.
        x = op.x if group < whole else rest_of(op.x, op.n, op.rest)
        weights(x, op.words, group, np.float32(op.largest), np.float32(op.scale), op.rest)
        in_group = 0.0
        for i in range(MAXIMA_GROUP):
            in_group += np.float64(load(op.rest + i * 4))
        place, before = place_of(share * in_group, op.rest, 0, MAXIMA_GROUP, 4, False)
        store_i64(op.token, group * MAXIMA_GROUP + place)
        store_f64(op.share, np.float64(load(op.rest + place * 4)) / total)

    return group_draw
