"""Gated linear units (Shazeer, 2020): out = activation(gate) * up."""

from __future__ import annotations

from math import pi, sqrt

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import GLU, ROW_ALIGN
from edgellm.kernels.staged import F32, Value, Vocabulary, staged


def _silu(v: Vocabulary, x: Value) -> Value:
    """x * sigmoid(x)"""
    return x / (v.exp(-x) + 1.0)


def _gelu(v: Vocabulary, x: Value) -> Value:
    """The tanh form: x/2 (1 + tanh(z)) = x * sigmoid(2z), with z = sqrt(2/pi) (x + 0.044715 x**3)."""
    z = x * (x * x * 0.044715 + 1.0)
    return x / (v.exp(z * (-2 * sqrt(2 / pi))) + 1.0)


def _gelu_erf(v: Vocabulary, x: Value) -> Value:
    """As it is defined: x times the probability that a normal number is below it."""
    return x * 0.5 * v.erfc(x * -sqrt(0.5))


def _relu(v: Vocabulary, x: Value) -> Value:
    """x where it is above 0, and NaN where it is NaN."""
    return v.select(v.greater(v.like(0.0, x), x), v.like(0.0, x), x)


def _relu_squared(v: Vocabulary, x: Value) -> Value:
    positive = _relu(v, x)
    return positive * positive


ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_erf": _gelu_erf, "relu": _relu, "relu_squared": _relu_squared}


def build_glu(isa, activation):
    op_at, activate = record_viewer(GLU), ACTIVATIONS[activation]

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def rows(v, gate, up, out, n_steps):
        def body(i):
            at = i * (ROW_ALIGN * 4)
            result = activate(v, v.load(gate + at, F32, ROW_ALIGN)) * v.load(up + at, F32, ROW_ALIGN)
            v.store(out + at, result)
            return []

        v.loop(n_steps, [], body)

    def glu(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.gate + at, op.up + at, op.out + at, n_tokens * op.stride // 16)

    return glu
