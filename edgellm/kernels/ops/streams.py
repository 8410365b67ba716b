"""What models with several streams of hidden states do beside (Gemma 3n): see `reference_streams.py`."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.ops.norm import LANES, inverse_size, mean_and_variance
from edgellm.kernels.staged import F32, F64, Value, Vocabulary, staged
from edgellm.kernels.stream_records import ADD_MIXED, ADD_TO_COLUMNS, KEEP_LARGE, MATCH_SIZE


def build_add_mixed(isa):
    """out = x + sums of the parts of y by the token's own weights; out may be x."""
    op_at, load = record_viewer(ADD_MIXED), memory(isa).load_f32

    @staged(isa, "void", "i64", "i64", "i64", "f32", "i64")
    def add_part(v, x, y, out, weight, n):
        def some(i: Value, lanes: int) -> None:
            v.store(out + i * 4, v.fma(v.f32(y + i * 4, lanes), weight, v.f32(x + i * 4, lanes)))

        v.elements(n, LANES, some)

    def add_mixed(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            weights = op.weights + token * op.weights_stride * 4
            for part in range(op.n_out):
                at = (token * op.stride + part * op.n_cols) * 4
                x = op.x + at
                for i in range(op.n_in):
                    weight = load(weights + (part * op.n_in + i) * 4) + np.float32(op.plus)
                    y = op.y + (token * op.y_stride + i * op.n_cols) * 4
                    add_part(x, y, op.out + at, weight, op.n_cols)
                    x = op.out + at

    return add_mixed


def build_add_to_columns(isa):
    """out = x, and y added to some of its columns, again and again; out may be x."""
    op_at, copy, add = record_viewer(ADD_TO_COLUMNS), memory(isa).copy_f32, memory(isa).add_f32

    def add_to_columns(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            row = op.out + token * op.stride * 4
            if op.out != op.x:
                copy(op.x + token * op.stride * 4, row, op.stride)
            for part in range(op.times):
                columns = row + (op.first + part * op.n_cols) * 4
                add(columns, op.y + token * op.y_stride * 4, columns, op.n_cols)

    return add_to_columns


def _match_row(v: Vocabulary, x: Value, like: Value, out: Value, n_cols: Value, least: Value) -> None:
    own = v.constant(1.0, F64) / inverse_size(v, x, n_cols, v.constant(0.0, F64)).to(F64)
    limited = v.maximum(own * own, least)
    wanted = v.constant(1.0, F64) / inverse_size(v, like, n_cols, v.constant(1e-300, F64)).to(F64)
    scale = (wanted / v.call("llvm.sqrt", F64, limited)).to(F32)
    v.elements(n_cols, LANES, lambda i, lanes: v.store(out + i * 4, v.f32(x + i * 4, lanes) * scale))


def _keep_row(v: Vocabulary, x: Value, out: Value, n_cols: Value, deviations: Value) -> None:
    mean, variance = mean_and_variance(v, x, n_cols)
    cutoff = (mean + v.call("llvm.sqrt", F64, variance) * deviations).to(F32)

    def some(i: Value, lanes: int) -> None:
        rest = v.f32(x + i * 4, lanes) - cutoff
        v.store(out + i * 4, v.select(v.greater(v.like(0.0, rest), rest), v.like(0.0, rest), rest))

    v.elements(n_cols, LANES, some)


def build_match_size(isa):
    """out = x, as large as `like`; out may be x."""
    op_at = record_viewer(MATCH_SIZE)
    match = staged(isa, "void", "i64", "i64", "i64", "i64", "f64")(_match_row)

    def match_size(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            match(op.x + at, op.like + at, op.out + at, op.n_cols, op.least)

    return match_size


def build_keep_large(isa):
    """out = how far each number of x is above a row's cutoff; out may be x."""
    op_at = record_viewer(KEEP_LARGE)
    keep = staged(isa, "void", "i64", "i64", "i64", "f64")(_keep_row)

    def keep_large(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            at = token * op.stride * 4
            keep(op.x + at, op.out + at, op.n_cols, op.deviations)

    return keep_large
