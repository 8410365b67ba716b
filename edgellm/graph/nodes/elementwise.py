"""Steps that treat every number by itself: sums, biases, activations with and without gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward

Activation = Literal["silu", "gelu", "gelu_erf", "relu", "relu_squared", "clamped_swiglu"]
Gate = Literal[Activation, "sigmoid", "linear"]
PlainActivation = Literal["silu", "gelu", "gelu_erf", "relu", "relu_squared", "tanh"]


@dataclass(eq=False, repr=False)
class Add(Node):
    """a + b"""

    a: Value
    b: Value

    @property
    def width(self) -> int:
        return self.a.width

    def backward(self, b: Backward, grad: Value) -> None:
        b.add_needed((self.a, self.b), (grad, grad))


@dataclass(eq=False, repr=False)
class AddBias(Node):
    """x + bias, for a bias [width] that is the same for all rows."""

    x: Value
    bias: Tensor

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import ColumnSum  # which training alone needs

        if b.trains(self.bias):
            b.add_sum(ColumnSum(grad, b.sums[self.bias]))
        if b.needs(self.x):
            b.add(self.x, grad)


@dataclass(eq=False, repr=False)
class GLU(Node):
    """activation(gate) * up, a gated linear unit (Shazeer, 2020).

    activation:  "silu" is x sigmoid(x); "gelu" is its tanh form, "gelu_erf" what it is defined as; "clamped_swiglu", of
                 gpt-oss, is gate sigmoid(1.702 gate) (up + 1) with gate cut off at 7, and up at 7 and -7;
                 "sigmoid" is sigmoid(gate) up, and "linear" gate up.
    """

    gate: Value
    up: Value
    activation: Gate

    @property
    def width(self) -> int:
        return self.gate.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import GLUBackward  # which training alone needs

        made = b.graph.record_all(GLUBackward(b.value(self.gate), b.value(self.up), grad, self.activation))
        b.add_needed((self.gate, self.up), made)


@dataclass(eq=False, repr=False)
class Activate(Node):
    """activation(x), see `GLU`; and "tanh"."""

    x: Value
    activation: PlainActivation

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import ActivateBackward  # which training alone needs

        if b.needs(self.x):
            b.add(self.x, b.graph.record(ActivateBackward(b.value(self.x), grad, self.activation)))


def add(a: Value, b: Value, name: str = "") -> Value:
    return a.graph.record(Add(a, b), name)


def add_bias(x: Value, bias: Tensor, name: str = "") -> Value:
    return x.graph.record(AddBias(x, bias), name)


def activate(x: Value, activation: PlainActivation, name: str = "") -> Value:
    return x.graph.record(Activate(x, activation), name)


def glu(gate: Value, up: Value, activation: Gate, name: str = "") -> Value:
    return gate.graph.record(GLU(gate, up, activation), name)
