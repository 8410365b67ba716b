"""For kernels that look for tokens in a row of logits: which of a group matter, the k-th largest, an order, a draw."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
from llvmlite import ir
from numba import njit

from edgellm.kernels.ops.groups import LANES, group_logits, rest_words
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.sampling_records import LARGEST
from edgellm.kernels.staged import F32, I1, I16, I32, I64, Value, staged


@cache
def search_words(isa) -> SimpleNamespace:
    """What the kernels here share."""
    words_of = memory(isa)
    load, load_f64, load_i64, store_i64 = words_of.load_f32, words_of.load_f64, words_of.load_i64, words_of.store_i64
    rest_of = rest_words(isa).rest_of

    @staged(isa, "i64", "i64", "i64", "i64", "f32")
    def bits_from(v, x, words, group, bound):
        """A bit for each token of a group that may come and has a logit from the bound on."""
        bits = v.constant(0, I64)
        for i, each in enumerate(group_logits(v, x, words, group)):
            is_there = v.builder.fcmp_ordered(">=", each.llvm, v.splat(bound, LANES).llvm)
            part = Value(v, v.builder.bitcast(is_there, I16)).zext(I64)
            bits = bits | part << i * LANES
        return bits

    @staged(isa, "i64", "i64")
    def n_bits(v, word):
        return v.call("llvm.ctpop", I64, word)

    @staged(isa, "i64", "i64")
    def lowest_bit(v, word):
        return Value(v, v.builder.cttz(word.llvm, ir.Constant(I1, 1)))

    @staged(isa, "i64", "f32")
    def key_of(v, x):
        """An integer, in the order of floats; both zeros have the same."""
        bits = (x + 0.0).bitcast(I32).sext(I64)
        return v.select(v.greater(v.like(0, bits), bits), (bits ^ 0x7FFFFFFF), bits)

    @staged(isa, "f32", "i64")
    def float_of(v, key):
        bits = v.select(v.greater(v.like(0, key), key), key ^ 0x7FFFFFFF, key)
        return bits.trunc(I32).bitcast(F32)

    @njit(error_model="numpy")
    def n_from(x, n, words, rest, bound):
        """How many of n numbers in groups are a bound or more, of those with a bit."""
        count, whole = 0, n // MAXIMA_GROUP
        for group in range(whole):
            count += n_bits(bits_from(x, words, group, bound))
        if whole * MAXIMA_GROUP < n:
            count += n_bits(bits_from(rest_of(x, n, rest), words, whole, bound))
        return count

    @njit(error_model="numpy")
    def bound_of(k, x, n, words, rest):
        """The k-th largest of n numbers; the least there is where fewer may come. Halves the interval it is in."""
        low, high = (
            key_of(np.float32(-LARGEST)),
            key_of(np.float32(LARGEST)),
        )  # k or more from low on, fewer from high on
        while high - low > 1:
            middle = low + (high - low) // 2
            count = n_from(x, n, words, rest, float_of(middle))
            if count >= k:
                low = middle
            else:
                high = middle
            if count == k:
                break
        return float_of(low)

    @njit(error_model="numpy")
    def sort(x, n):
        """Different int64 at x, the least first: shell sort, with the gaps of Gonnet and Baeza-Yates."""
        gap = n
        while gap > 1:
            gap = max(1, gap * 5 // 11)
            for i in range(gap, n):
                value, at = load_i64(x + i * 8), i
                while at >= gap and load_i64(x + (at - gap) * 8) > value:
                    store_i64(x + at * 8, load_i64(x + (at - gap) * 8))
                    at -= gap
                store_i64(x + at * 8, value)

    @njit(error_model="numpy")
    def place_of(aim, x, first, stop, step, is_wide):
        """Where the sum of numbers from the first on goes beyond an aim: the place, and the sum before it.

        Never a 0; the last number that is none, where all of them together do not reach it.
        """
        before, place, at_place = 0.0, first, 0.0
        for i in range(first, stop):
            weight = load_f64(x + i * step) if is_wide else np.float64(load(x + i * step))
            if weight > 0:
                place, at_place = i, before
                before += weight
                if before > aim:
                    break
        return place, at_place

    return SimpleNamespace(
        place_of=place_of,
        bits_from=bits_from,
        lowest_bit=lowest_bit,
        key_of=key_of,
        float_of=float_of,
        bound_of=bound_of,
        sort=sort,
    )
