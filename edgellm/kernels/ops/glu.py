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


# erfc(z) = t exp(-z**2 + a polynomial of t) for t = 1 / (1 + z / 2), to 1.2e-7 of it (Press et al., Numerical Recipes).
_ERFC = (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
         -1.26551223)  # fmt: skip


def upper_tail(v: Vocabulary, x: Value) -> Value:
    """The share of a normal distribution beyond |x|."""
    z = v.abs(x) * sqrt(0.5)
    t = v.like(1.0, x) / (z * 0.5 + 1.0)
    exponent = v.like(_ERFC[0], x)
    for coefficient in _ERFC[1:]:
        exponent = v.fma(exponent, t, v.like(coefficient, x))
    return v.exp(v.fma(-z, z, exponent)) * t * 0.5


def _gelu_erf(v: Vocabulary, x: Value) -> Value:
    """x times the share of a normal distribution below it (Hendrycks and Gimpel, 2016)."""
    # NaN is not less than 0 and stays; beyond 16 the tail is 0, also where x is infinite.
    size = v.minimum(v.like(16.0, x), v.abs(x))
    return v.select(v.greater(v.like(0.0, x), x), v.like(0.0, x), x) - size * upper_tail(v, x)


ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_erf": _gelu_erf}


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
