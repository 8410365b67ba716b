"""Gradients of gated linear units (see `glu.py`): out = activation(gate) * up.

Both activations are x * s with a sigmoid s, of x itself or of a polynomial in x.
"""

from __future__ import annotations

from math import pi, sqrt

from edgellm.kernels.gradient_records import GLU_BACKWARD
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.staged import Value, Vocabulary, staged

# Beyond it a gate of gelu is 0 or x to the last bit, and so is its slope 0 or 1; squares of it are no trouble.
STEEP = 16.0


def _sigmoid(v: Vocabulary, x: Value) -> Value:
    return v.like(1.0, x) / (v.exp(-x) + 1.0)


def _silu(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    """x * sigmoid(x), and its slope."""
    s = _sigmoid(v, x)
    value = x * s
    return value, s + value * (-s + 1.0)


def _gelu(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    """x * sigmoid(z) with z = 2 sqrt(2/pi) (x + 0.044715 x**3), and its slope."""
    # NaN is not less than STEEP and stays.
    near = v.minimum(v.like(STEEP, x), v.maximum(v.like(-STEEP, x), x))
    square = near * near
    s = _sigmoid(v, near * (square * 0.044715 + 1.0) * (2 * sqrt(2 / pi)))
    slope_of_z = (square * (3 * 0.044715) + 1.0) * (2 * sqrt(2 / pi))
    return x * s, s + near * s * (-s + 1.0) * slope_of_z


WITH_SLOPES = {"silu": _silu, "gelu": _gelu}


def build_glu_backward(isa, activation):
    op_at, activate = record_viewer(GLU_BACKWARD), WITH_SLOPES[activation]

    @staged(isa, "void", *["i64"] * 6)
    def rows(v, gate, up, dy, d_gate, d_up, n_steps):
        def body(i):
            at = i * (ROW_ALIGN * 4)
            value, slope = activate(v, v.f32(gate + at, ROW_ALIGN))
            factor, gradient = v.f32(up + at, ROW_ALIGN), v.f32(dy + at, ROW_ALIGN)
            v.store(d_gate + at, gradient * factor * slope)
            v.store(d_up + at, gradient * value)

        v.repeat(n_steps, body)

    def glu_backward(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        n_steps = n_tokens * op.stride // ROW_ALIGN
        rows(op.gate + at, op.up + at, op.dy + at, op.d_gate + at, op.d_up + at, n_steps)

    return glu_backward
