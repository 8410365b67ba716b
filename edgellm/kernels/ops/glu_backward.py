"""Gradients of gated linear units (see `glu.py`): out = activation(gate) * up.

SiLU and the tanh form of GELU are x * s with a sigmoid s, of x itself or of a polynomial in x.
"""

from __future__ import annotations

from math import pi, sqrt

from edgellm.kernels.gradient_records import GLU_BACKWARD
from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.glu import ACTIVATIONS, GATES, LIMIT, STEEPNESS
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


def _gelu_erf(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    """x * p, where p is the probability that a normal number is below x, and its slope."""
    p = v.erfc(x * -sqrt(0.5)) * 0.5
    # NaN is not less than STEEP and stays; so far out the density is 0.
    near = v.minimum(v.like(STEEP, x), v.maximum(v.like(-STEEP, x), x))
    return ACTIVATIONS["gelu_erf"](v, x), p + near * v.exp(near * near * -0.5) * (1 / sqrt(2 * pi))


def _relu(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    return ACTIVATIONS["relu"](v, x), v.select(v.greater(x, v.like(0.0, x)), v.like(1.0, x), v.like(0.0, x))


def _relu_squared(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    return ACTIVATIONS["relu_squared"](v, x), ACTIVATIONS["relu"](v, x) * 2.0


def _sigmoid_gate(v: Vocabulary, x: Value) -> tuple[Value, Value]:
    value = GATES["sigmoid"](v, x)
    return value, value * (-value + 1.0)


WITH_SLOPES = {"silu": _silu, "gelu": _gelu, "gelu_erf": _gelu_erf, "relu": _relu, "relu_squared": _relu_squared}
GATES_WITH_SLOPES = WITH_SLOPES | {"sigmoid": _sigmoid_gate, "linear": lambda v, x: (x, v.like(1.0, x))}


def _clamped_swiglu(v: Vocabulary, gate: Value, up: Value, dy: Value) -> tuple[Value, Value]:
    """By both of gpt-oss's gate: nothing where it is cut off."""
    zero, limit = v.like(0.0, gate), v.like(LIMIT, gate)
    is_high, is_far = v.greater(gate, limit), v.greater(v.abs(up), limit)
    near_gate = v.select(is_high, limit, gate)
    near_up = v.select(is_far, v.select(v.greater(up, zero), limit, v.like(-LIMIT, up)), up)
    s = _sigmoid(v, near_gate * STEEPNESS)
    value = near_gate * s
    slope = s + value * (-s + 1.0) * STEEPNESS
    return v.select(is_high, zero, dy * (near_up + 1.0) * slope), v.select(is_far, zero, dy * value)


def _gated_backward(v: Vocabulary, activation: str, gate: Value, up: Value, dy: Value) -> tuple[Value, Value]:
    if activation == "clamped_swiglu":
        return _clamped_swiglu(v, gate, up, dy)
    value, slope = GATES_WITH_SLOPES[activation](v, gate)
    return dy * up * slope, dy * value


def build_glu_backward(isa, activation):
    op_at = record_viewer(GLU_BACKWARD)

    @staged(isa, "void", *["i64"] * 6)
    def rows(v, gate, up, dy, d_gate, d_up, n_steps):
        def body(i):
            at = i * (ROW_ALIGN * 4)
            inputs = (v.f32(x + at, ROW_ALIGN) for x in (gate, up, dy))
            by_gate, by_up = _gated_backward(v, activation, *inputs)
            v.store(d_gate + at, by_gate)
            v.store(d_up + at, by_up)

        v.repeat(n_steps, body)

    def glu_backward(record, chunk, thread):
        op = op_at(record)
        first = chunk * op.chunk_tokens
        n_tokens = min(op.chunk_tokens, op.batch.n_tokens - first)
        at = first * op.stride * 4
        n_steps = n_tokens * op.stride // ROW_ALIGN
        rows(op.gate + at, op.up + at, op.dy + at, op.d_gate + at, op.d_up + at, n_steps)

    return glu_backward
