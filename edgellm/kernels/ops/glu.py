"""Gated linear units (Shazeer, 2020): out = activation(gate) * up."""

from __future__ import annotations

from math import pi, sqrt

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.records import GLU, ROW_ALIGN
from edgellm.kernels.staged import Value, Vocabulary, staged


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


def _sigmoid(v: Vocabulary, x: Value) -> Value:
    """NaN where x is, of which `exp` makes 0."""
    return v.like(1.0, x) / (v.exp(-x) + 1.0) + (x - x)


ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_erf": _gelu_erf, "relu": _relu, "relu_squared": _relu_squared}
GATES = ACTIVATIONS | {"sigmoid": _sigmoid, "linear": lambda v, x: x}  # which are no activations by themselves
STEEPNESS, LIMIT = 1.702, 7.0


def _clamped_swiglu(v: Vocabulary, gate: Value, up: Value) -> Value:
    """As in gpt-oss: gate * sigmoid(1.702 gate) * (up + 1), gate cut off at 7 and up at 7 and -7; NaN stays."""
    gate = v.select(v.greater(gate, v.like(LIMIT, gate)), v.like(LIMIT, gate), gate)
    up = v.select(
        v.greater(v.abs(up), v.like(LIMIT, up)),
        v.select(v.greater(up, v.like(0.0, up)), v.like(LIMIT, up), v.like(-LIMIT, up)),
        up,
    )
    return gate / (v.exp(gate * -STEEPNESS) + 1.0) * (up + 1.0)


def _gated(v: Vocabulary, activation: str, gate: Value, up: Value) -> Value:
    if activation == "clamped_swiglu":
        return _clamped_swiglu(v, gate, up)
    return GATES[activation](v, gate) * up


def build_glu(isa, activation):
    op_at = record_viewer(GLU)

    @staged(isa, "void", "i64", "i64", "i64", "i64")
    def rows(v, gate, up, out, n_steps):
        def body(i):
            at = i * (ROW_ALIGN * 4)
            v.store(out + at, _gated(v, activation, v.f32(gate + at, ROW_ALIGN), v.f32(up + at, ROW_ALIGN)))
            return []

        v.loop(n_steps, [], body)

    def glu(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        rows(op.gate + at, op.up + at, op.out + at, n_tokens * op.stride // 16)

    return glu
