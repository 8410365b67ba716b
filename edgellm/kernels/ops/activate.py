"""Activations by themselves, and their gradients; see `glu.py` for those that are gates too."""

from __future__ import annotations

from edgellm.kernels.gradient_records import ACTIVATE_BACKWARD
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.glu import ACTIVATIONS
from edgellm.kernels.ops.glu_backward import WITH_SLOPES
from edgellm.kernels.records import ACTIVATE, ROW_ALIGN
from edgellm.kernels.staged import Value, Vocabulary, staged


def _tanh_with_slope(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    y = v.tanh(x)
    return y, -y * y + 1.0


def build_activate(isa, activation):
    """out = activation(x); out may be x."""
    op_at, function = record_viewer(ACTIVATE), {**ACTIVATIONS, "tanh": lambda v, x: v.tanh(x)}[activation]

    @staged(isa, "void", "i64", "i64", "i64")
    def rows(v, x, out, n):
        v.elements(n, ROW_ALIGN, lambda i, lanes: v.store(out + i * 4, function(v, v.f32(x + i * 4, lanes))))

    def activate(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.x + at, op.out + at, n_tokens * op.stride)

    return activate


def build_activate_backward(isa, activation):
    """out = dy * activation'(x); out may be x or dy."""
    op_at, function = record_viewer(ACTIVATE_BACKWARD), {**WITH_SLOPES, "tanh": _tanh_with_slope}[activation]

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def rows(v, x, dy, out, n):
        def step(i: Value, lanes: int) -> None:
            _, slope = function(v, v.f32(x + i * 4, lanes))
            v.store(out + i * 4, v.f32(dy + i * 4, lanes) * slope)

        v.elements(n, ROW_ALIGN, step)

    def activate_backward(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.x + at, op.dy + at, op.out + at, n_tokens * op.stride)

    return activate_backward
