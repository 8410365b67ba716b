"""What sampling asks of the text so far: which tokens are in it, and what followed where it was as it is at its end."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.sampling_records import COUNT_TOKENS, REPEATED


def build_count_tokens(isa):
    op_at, words_of = record_viewer(COUNT_TOKENS), memory(isa)
    load_i64, store_i64, store_f64 = words_of.load_i64, words_of.store_i64, words_of.store_f64
    load_i32, store_i32 = words_of.load_i32, words_of.store_i32

    def count_tokens(record, chunk, thread):
        op = op_at(record)
        n = 0
        for i in range(op.n_tokens):
            token = load_i64(op.tokens + i * 8)
            if token >= 0 and token < op.n:
                count = load_i32(op.counts + token * 4)
                store_i32(op.counts + token * 4, count + 1)
                if count == 0:
                    store_i64(op.tokens + n * 8, token)
                    n += 1
        for i in range(n):
            at = op.counts + load_i64(op.tokens + i * 8) * 4
            store_f64(op.times + i * 8, np.float64(load_i32(at)))
            store_i32(at, 0)
        store_i64(op.found, n)

    return count_tokens


def build_repeated(isa):
    op_at, words_of = record_viewer(REPEATED), memory(isa)
    load, store, load_f64, store_f64 = words_of.load_i64, words_of.store_i64, words_of.load_f64, words_of.store_f64

    def repeated(record, chunk, thread):
        op = op_at(record)
        last, n = op.n - 1, 0
        for end in range(last):
            length = 0
            while (
                length < op.limit
                and length <= end
                and (load(op.ids + (end - length) * 8) == load(op.ids + (last - length) * 8))
            ):
                length += 1
            if length > 0 and length >= op.allowed:
                token, place = load(op.ids + (end + 1) * 8), 0
                while place < n and load(op.tokens + place * 8) != token:
                    place += 1
                if place == n:
                    store(op.tokens + n * 8, token)
                    store_f64(op.lengths + n * 8, 0.0)
                    n += 1
                store_f64(op.lengths + place * 8, max(load_f64(op.lengths + place * 8), np.float64(length)))
        store(op.found, n)

    return repeated
