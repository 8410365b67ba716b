"""Rows multiplied, softly capped, or cut into columns."""

from __future__ import annotations

import numpy as np

from edgellm.kernels.gradient_records import SOFT_CAP_BACKWARD
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.records import COLUMNS, ROW_ALIGN, SCALE
from edgellm.kernels.staged import Value, staged


def build_scale(isa):
    """out = x * factor; out may be x."""
    return _by_factor(isa, lambda v, x, factor: x * factor)


def build_soft_cap(isa):
    """out = factor * tanh(x / factor); out may be x."""
    return _by_factor(isa, lambda v, x, factor: v.tanh(x / factor) * factor)


def _by_factor(isa, function):
    op_at = record_viewer(SCALE)

    @staged(isa, "void", "i64", "i64", "i64", "f32")
    def rows(v, x, out, n, factor):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, function(v, v.f32(x + i * 4, lanes), factor)))

    def scale(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.x + at, op.out + at, n_tokens * op.stride, np.float32(op.factor))

    return scale


def build_soft_cap_backward(isa):
    """out = dy * (1 - (y / cap)**2), for y = cap * tanh(x / cap); out may be dy."""
    op_at = record_viewer(SOFT_CAP_BACKWARD)

    @staged(isa, "void", "i64", "i64", "i64", "i64", "f32")
    def rows(v, y, dy, out, n, cap):
        def some(i: Value, lanes: int) -> None:
            share = v.f32(y + i * 4, lanes) / cap
            v.store(out + i * 4, v.f32(dy + i * 4, lanes) * (-share * share + 1.0))

        v.elements(n, ROW_ALIGN, some)

    def soft_cap_backward(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.y + at, op.dy + at, op.out + at, n_tokens * op.stride, np.float32(op.cap))

    return soft_cap_backward


def build_columns(isa):
    """Some neighbouring columns of x as columns of out, whose others are 0 where `out_cols` says so."""
    op_at = record_viewer(COLUMNS)
    copy, clear = memory(isa).copy_f32, memory(isa).clear_f32

    def columns(record, chunk, thread):
        op = op_at(record)
        end = min((chunk + 1) * op.chunk_tokens, op.batch.n_tokens)
        for token in range(chunk * op.chunk_tokens, end):
            out = op.out + token * op.out_stride * 4
            clear(out, op.out_cols)
            copy(op.x + (token * op.stride + op.first) * 4, out + op.out_first * 4, op.n_cols)

    return columns
