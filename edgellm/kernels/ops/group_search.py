"""Tokens of a row of logits, found by the largest of every MAXIMA_GROUP: what filters leave, and one of them at random.

Only groups whose largest says that they matter are looked at.
"""

from __future__ import annotations

from math import inf
from operator import add

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.group_tokens import COOLEST, probability_words
from edgellm.kernels.ops.group_words import search_words
from edgellm.kernels.ops.groups import LANES, largest_of_row, rest_words
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import (
    AIM_PEAK,
    AIM_SHARPNESS,
    AIM_WIDTH,
    AIMED,
    EVENNESS,
    FILTER,
    GROUP_FIND,
    LARGEST,
    MOST_LIKELY,
    PROBABLE,
    REACHING,
    SIGMAS,
    TYPICAL,
    WITHIN,
)
from edgellm.kernels.staged import F64, Value, staged

FEW = 64  # tokens that are tried first, where it is not known how many are needed
LEAST_SHARE = 1e-30  # of a token that is to be enough
NARROW = 0.5  # nats, how far from the mean the surprise of tokens is that are tried first
LEAST_EXPONENT = 88.0  # with less, a weight is 0
FILTER_BYTES = FILTER.dtype.itemsize


def build_group_find(isa):
    op_at, filter_at, rest_of = record_viewer(GROUP_FIND), record_viewer(FILTER), rest_words(isa).rest_of
    words_of, search = memory(isa), search_words(isa)
    load, store, load_i64, store_i64 = words_of.load_f32, words_of.store_f32, words_of.load_i64, words_of.store_i64
    store_f64 = words_of.store_f64
    bits_from, lowest_bit, key_of, float_of = search.bits_from, search.lowest_bit, search.key_of, search.float_of
    bound_of, sort, place_of = search.bound_of, search.sort, search.place_of
    n_groups_of, words = rest_words(isa).n_groups_of, probability_words(isa)
    log, of_all, temperature_of = words.log, words.of_all, words.temperature_of

    @staged(isa, "f64", "i64", "i64", "f32", "f32", "i64")
    def weights_of(v, x, n, largest, scale, out):
        """exp((x - largest) * scale) of n logits; returns their sum, one after the other."""

        def part(i: Value, lanes: int) -> None:
            v.store(out + i * 4, v.exp(v.maximum((v.f32(x + i * 4, lanes) - largest) * scale, -88.0)))

        v.elements(n, LANES, part)
        start = v.constant(0.0, F64)
        return v.loop(n, [start], lambda i, total: [total + v.f32(out + i * 4).to(F64)])[0]

    largest_of_all = staged(isa, "f32", "i64", "i64")(largest_of_row)

    @njit(error_model="numpy")
    def from_bound(op, bound):
        """All tokens from the bound on, and their logits; returns how many."""
        whole, n_groups = op.n // MAXIMA_GROUP, n_groups_of(op.n)
        n = 0
        for group in range(n_groups):
            if load(op.maxima + group * 4) >= bound:
                x = op.x if group < whole else rest_of(op.x, op.n, op.rest)
                bits = bits_from(x, op.words, group, bound)
                while bits != 0:
                    token = group * MAXIMA_GROUP + lowest_bit(bits)
                    store_i64(op.tokens + n * 8, token)
                    store(op.logits + n * 4, load(x + token * 4))
                    bits &= bits - 1
                    n += 1
        return n

    @staged(isa, "void", "i64", "i64", "f32", "f32", "f32", "i64")
    def distances(v, x, n, largest, scale, mean, out):
        """How far the exponents of n logits are from their mean."""

        def part(i: Value, lanes: int) -> None:
            v.store(out + i * 4, v.abs((v.f32(x + i * 4, lanes) - largest) * scale - mean))

        v.elements(n, LANES, part)

    @staged(isa, "void", "i64", "i64", "i64")
    def negate(v, x, n, out):
        v.elements(n, LANES, lambda i, lanes: v.store(out + i * 4, -v.f32(x + i * 4, lanes)))

    @staged(isa, "f64", "i64", "i64", "i64", "f32")
    def sum_up_to(v, weights, ranks, n, most):
        """The sum of the weights whose ranks are `most` or less: of lanes, and of the rest."""
        whole = n / LANES

        def part(at: Value, lanes: int) -> Value:
            weight = v.f32(weights + at, lanes)
            is_more = v.greater(v.f32(ranks + at, lanes), v.like(most, weight))
            return v.select(is_more, v.like(0.0, weight), weight).to(F64)

        (lanes,) = v.loop(whole, [v.constant(0.0, F64, LANES)], lambda i, total: [total + part(i * 4 * LANES, LANES)])
        first = whole * LANES
        start = [v.folded(lanes, add)]
        return v.loop(n - first, start, lambda i, total: [total + part((first + i) * 4, 1)])[0]

    @njit(error_model="numpy")
    def rank_reaching(weights, ranks, n, enough):
        """The key of the rank up to which weights are enough; halves the interval that it is in."""
        low, high = key_of(np.float32(-LARGEST)) - 1, key_of(np.float32(LARGEST))  # up to low they are not enough
        while high - low > 1:
            middle = low + (high - low) // 2
            if sum_up_to(weights, ranks, n, float_of(middle)) >= enough:
                high = middle
            else:
                low = middle
        return high

    @njit(error_model="numpy")
    def keep_ranks(op, n, enough):
        """Of the first n, those of the least ranks, until their weights are enough; of the last rank the first ones.

        Returns how many, one at least; they stay in their order.
        """
        enough = max(enough, LEAST_SHARE)
        key = rank_reaching(op.weights, op.ranks, n, enough)
        last, total = float_of(key), sum_up_to(op.weights, op.ranks, n, float_of(key - 1))
        n_kept = 0
        for i in range(n):
            rank = load(op.ranks + i * 4)
            if rank < last or (rank == last and total < enough):
                if rank == last:
                    total += np.float64(load(op.weights + i * 4))
                store_i64(op.tokens + n_kept * 8, load_i64(op.tokens + i * 8))
                store(op.logits + n_kept * 4, load(op.logits + i * 4))
                n_kept += 1
        return n_kept

    @njit(error_model="numpy")
    def all_typical(op, which, largest):
        """Of all: those in a band around the mean are tried, made wider until they are enough."""
        width, scale = NARROW, np.float32(which.scale)
        all_weights, products, _ = of_all(op)
        enough, mean = which.value * all_weights, products / all_weights
        while True:
            bound = np.float64(largest) + (mean - width) / which.scale
            n = from_bound(op, np.float32(min(max(bound, -LARGEST), np.float64(largest))))
            total = weights_of(op.logits, n, largest, scale, op.weights)
            distances(op.logits, n, largest, scale, np.float32(mean), op.ranks)
            inside = sum_up_to(op.weights, op.ranks, n, np.float32(width))
            if inside >= enough or bound <= -LARGEST or width > 2 * LEAST_EXPONENT:
                return keep_ranks(op, n, min(enough, total))
            width *= 2

    @njit(error_model="numpy")
    def typical(op, which, n, largest):
        """Of the first n."""
        scale = np.float32(which.scale)
        total = weights_of(op.logits, n, largest, scale, op.weights)
        mean = 0.0
        for i in range(n):
            weight = np.float64(load(op.weights + i * 4))
            if weight > 0:
                mean += weight * (np.float64(load(op.logits + i * 4)) - np.float64(largest))
        distances(op.logits, n, largest, scale, np.float32(mean / total * which.scale), op.ranks)
        return keep_ranks(op, n, which.value * total)

    @njit(error_model="numpy")
    def put_in_order(op, n):
        """The largest first: logit and token in one number, sorted, and taken apart again."""
        for i in range(n):
            key = key_of(load(op.logits + i * 4))
            store_i64(op.tokens + i * 8, (-key << 32) + load_i64(op.tokens + i * 8))
        sort(op.tokens, n)
        for i in range(n):
            both = load_i64(op.tokens + i * 8)
            token = both & 0xFFFFFFFF
            store_i64(op.tokens + i * 8, token)
            store(op.logits + i * 4, float_of(-((both - token) >> 32)))

    @njit(error_model="numpy")
    def most_likely(op, k):
        """Of all, the k largest or some more; returns how many there are."""
        bound, n_groups = np.float32(-LARGEST), n_groups_of(op.n)
        # The k-th largest of the groups' maxima is a lower bound of the k-th largest logit.
        if k < n_groups:
            bound = bound_of(k, op.maxima, n_groups, op.every, op.rest)
        elif k < op.n:
            bound = bound_of(k, op.x, op.n, op.words, op.rest)
        return from_bound(op, bound)

    @njit(error_model="numpy")
    def reaching(op, n, largest, scale, enough):
        """Of the first n, the most likely that are enough, or all, in the order they have."""
        total = weights_of(op.logits, n, largest, scale, op.weights)
        negate(op.logits, n, op.ranks)
        return keep_ranks(op, n, min(enough, total))

    @njit(error_model="numpy")
    def n_groups_reaching(op, n_groups, enough):
        """How many groups, those of the largest maxima, together are enough."""
        negate(op.maxima, n_groups, op.ranks)
        last, n = float_of(rank_reaching(op.sums, op.ranks, n_groups, enough)), 0
        for group in range(n_groups):
            if load(op.ranks + group * 4) <= last:
                n += 1
        return n

    @njit(error_model="numpy")
    def all_reaching(op, which, largest):
        """Of all. The tokens that are enough are in as many groups or fewer, which then are enough too.

        The least number of groups that is so is a good guess: likely tokens are seldom in one group.
        """
        scale, enough, k = np.float32(which.scale), which.value * of_all(op)[0], FEW
        while True:
            n = most_likely(op, k)
            if k > n or k >= op.n or weights_of(op.logits, n, largest, scale, op.weights) >= enough:
                return reaching(op, n, largest, scale, enough)
            if k == FEW:
                k = n_groups_reaching(op, n_groups_of(op.n), enough) * 9 // 16
            k = max(2 * k, 2 * FEW)

    @njit(error_model="numpy")
    def within(largest, distance):
        """The least logit so far below the largest."""
        bound = np.float64(largest) - distance
        return np.float32(min(max(bound, -LARGEST), np.float64(largest)))

    @njit(error_model="numpy")
    def from_share(largest, scale, share):
        """The least logit of tokens so many times as likely as the likeliest."""
        return within(largest, log(max(1.0, 1 / share)) / scale if share > 0 else inf)

    @njit(error_model="numpy")
    def from_sigmas(largest, sigmas, n, total, squares):
        """parts: of distances to the largest."""
        mean = total / n
        return within(largest, sigmas * np.sqrt(max(0.0, squares / n - mean * mean)))

    @njit(error_model="numpy")
    def spread_of(op, n, largest):
        total, squares = 0.0, 0.0
        for i in range(n):
            rest = np.float64(load(op.logits + i * 4)) - np.float64(largest)
            total += rest
            squares += rest * rest
        return total, squares

    @njit(error_model="numpy")
    def first(op, largest):
        """Of all, what the first filter leaves; returns how many, and -1 where logits are too large."""
        which = filter_at(op.filters)
        if which.kind == WITHIN:
            return from_bound(op, within(largest, which.value / which.scale))
        if which.kind == PROBABLE:
            return from_bound(op, from_share(largest, which.scale, which.value * of_all(op)[0]))
        if which.kind == SIGMAS:
            n, total, squares = of_all(op)
            return from_bound(op, from_sigmas(largest, which.value, n, total, squares)) if squares < inf else -1
        if which.kind == TYPICAL:
            return all_typical(op, which, largest)
        if which.kind == REACHING:
            return all_reaching(op, which, largest)
        k = np.int64(which.value)
        n = most_likely(op, k)
        put_in_order(op, n)
        return min(n, k)

    @njit(error_model="numpy")
    def n_reaching(op, n, enough):
        """How many of the first n weights together reach it; n where all do not."""
        total = 0.0
        for i in range(n):
            total += np.float64(load(op.weights + i * 4))
            if total >= enough:
                return i + 1
        return n

    @njit(error_model="numpy")
    def keep_from(op, n, bound):
        n_kept = 0
        for i in range(n):
            logit = load(op.logits + i * 4)
            if logit >= bound:
                store(op.logits + n_kept * 4, logit)
                store_i64(op.tokens + n_kept * 8, load_i64(op.tokens + i * 8))
                n_kept += 1
        return n_kept

    @njit(error_model="numpy")
    def next_of(op, which, n, largest, is_sorted):
        """How many of the first n a later filter leaves; they are the first then."""
        if which.kind == WITHIN:
            return keep_from(op, n, within(largest, which.value / which.scale))
        if which.kind == SIGMAS:
            total, squares = spread_of(op, n, largest)
            return keep_from(op, n, from_sigmas(largest, which.value, n, total, squares))
        if which.kind == TYPICAL:
            return typical(op, which, n, largest)
        if which.kind == MOST_LIKELY:
            if not is_sorted:
                put_in_order(op, n)
            return min(n, np.int64(which.value))
        scale = np.float32(which.scale)
        total = weights_of(op.logits, n, largest, scale, op.weights)
        if which.kind == PROBABLE:
            return keep_from(op, n, from_share(largest, which.scale, which.value * total))
        if not is_sorted:
            return reaching(op, n, largest, scale, which.value * total)
        return n_reaching(op, n, which.value * total)

    @njit(error_model="numpy")
    def cooled(op, which, n, largest):
        """The temperature that the first n have by the filter EVENNESS."""
        total, products = weights_of(op.logits, n, largest, np.float32(which.scale), op.weights), 0.0
        for i in range(n):
            exponent = (np.float64(load(op.logits + i * 4)) - np.float64(largest)) * which.scale
            products += np.float64(load(op.weights + i * 4)) * max(exponent, -LEAST_EXPONENT)
        return temperature_of(which, total, products, n)

    @njit(error_model="numpy")
    def aim(op, which, n, largest):
        """Give the first n other logits, by their probabilities, which are the ranks then."""
        total = weights_of(op.logits, n, largest, np.float32(which.scale), op.weights)
        for i in range(n):
            probability = np.float64(load(op.weights + i * 4)) / total
            distance = abs(probability - which.value) / AIM_WIDTH
            store(op.ranks + i * 4, np.float32(probability))
            store(op.logits + i * 4, np.float32(AIM_PEAK - AIM_SHARPNESS * distance * distance / (1 + distance)))

    @njit(error_model="numpy")
    def draw(op, which, n, largest):
        """One of the first n, after the last filter."""
        scale = op.draw_scale
        if which.kind == EVENNESS:
            scale = min(scale / cooled(op, which, n, largest), 1 / COOLEST)
        if which.kind == AIMED:
            aim(op, which, n, largest)
            scale, largest = 1.0, largest_of_all(op.logits, n)
        total = weights_of(op.logits, n, largest, np.float32(scale), op.weights)
        place, _ = place_of(op.number * total, op.weights, 0, n, 4, False)
        store_i64(op.found + 8, place)
        store_i64(op.found + 16, load_i64(op.tokens + place * 8))
        share = np.float64(load(op.weights + place * 4)) / total
        store_f64(op.share, np.float64(load(op.ranks + place * 4)) if which.kind == AIMED else share)

    def group_find(record, chunk, thread):
        op = op_at(record)
        largest = largest_of_all(op.maxima, n_groups_of(op.n))
        n = first(op, largest) if largest > -inf else 0
        is_sorted = filter_at(op.filters).kind == MOST_LIKELY
        if n > 0:
            for i in range(op.n_filters):
                which = filter_at(op.filters + i * FILTER_BYTES)
                if i > 0 and which.kind < EVENNESS:
                    n = next_of(op, which, n, largest, is_sorted)
                if which.kind == TYPICAL:  # which alone may leave the largest out
                    largest = largest_of_all(op.logits, n)
                is_sorted = is_sorted or which.kind == MOST_LIKELY
            if op.number >= 0:
                draw(op, filter_at(op.filters + (op.n_filters - 1) * FILTER_BYTES), n, largest)
        store_i64(op.found, n)

    return group_find
