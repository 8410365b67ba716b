"""Steps that treat every number by itself: sums, biases, gated activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

Activation = Literal["silu", "gelu"]


@dataclass(frozen=True, eq=False)
class Add(Node):
    """a + b"""

    a: Value
    b: Value

    @property
    def width(self) -> int:
        return self.a.width


@dataclass(frozen=True, eq=False)
class AddBias(Node):
    """x + bias, for a bias [width] that is the same for all rows."""

    x: Value
    bias: Tensor

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(frozen=True, eq=False)
class GLU(Node):
    """activation(gate) * up, a gated linear unit (Shazeer, 2020).

    activation:  "silu" is x sigmoid(x); "gelu" is its tanh form.
    """

    gate: Value
    up: Value
    activation: Activation

    @property
    def width(self) -> int:
        return self.gate.width


def add(a: Value, b: Value, name: str = "") -> Value:
    return a.graph.record(Add(a, b), name)


def add_bias(x: Value, bias: Tensor, name: str = "") -> Value:
    return x.graph.record(AddBias(x, bias), name)


def glu(gate: Value, up: Value, activation: Activation, name: str = "") -> Value:
    return gate.graph.record(GLU(gate, up, activation), name)
