"""What sampling asks of the text so far: what followed where it was as it is at its end."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.sampling_records import REPEATED


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
