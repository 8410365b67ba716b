"""Low-rank steps beside a linear (LoRA; Hu et al., 2021): y + scale * B A x, with few rows of A and few columns of B.

h = narrow(x, a)             # A x
y = widen(y, h, b, scale)    # y + scale * B h

Beside the matrices of experts, A and B are matrices of experts too (`experts.py`), and what they make is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.dataclass import dataclass
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value
from edgellm.graph.nodes.scaled import scale as scale_rows

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Narrow(Node):
    """scale * W x, for a weight [rank, width of x] of few rows, F32 or F16.

    scales:  the table of the batch that says how much every row counts; what counts 0 is not computed.
    """

    x: Value
    weight: Tensor
    scale: float = 1.0
    scales: str | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import OuterSum, linear_transposed  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(OuterSum(grad, b.value(self.x), b.sums[self.weight], self.scale))
        if b.needs(self.x):
            so_far = b.found.get(self.x)
            # A step that adds to what is there spares a sum; it needs something to add to.
            if so_far is None and self.scale == 1:
                b.add(self.x, linear_transposed(grad, self.weight))
            else:
                assert so_far is not None
                b.found[self.x] = widen(so_far, grad, self.weight, self.scale)


@dataclass(eq=False, repr=False)
class Widen(Node):
    """y + scale * W^T h, for a weight [rank, width of y], F32 or F16; scales: a factor for every row."""

    y: Value
    h: Value
    weight: Tensor
    scale: float = 1.0
    scales: str | None = None

    @property
    def width(self) -> int:
        return self.y.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import OuterSum  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(OuterSum(b.value(self.h), grad, b.sums[self.weight], self.scale))
        if b.needs(self.h):
            b.add(self.h, b.graph.record(Narrow(grad, self.weight, self.scale)))
        if b.needs(self.y):
            b.add(self.y, grad)


@dataclass(eq=False, repr=False)
class AddScaled(Node):
    """y + scale * x; scales: a factor for every row, and where it is 0, y stays as it is."""

    y: Value
    x: Value
    scale: float = 1.0
    scales: str | None = None

    @property
    def width(self) -> int:
        return self.y.width

    def backward(self, b: Backward, grad: Value) -> None:
        if b.needs(self.x):
            b.add(self.x, scale_rows(grad, self.scale))
        if b.needs(self.y):
            b.add(self.y, grad)


@dataclass(eq=False, repr=False)
class MultiplyColumns(Node):
    """x * weight, for float32 weight [width] that is the same for all rows: the magnitudes of DoRA."""

    x: Value
    weight: Tensor

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import ColumnProductSum  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(ColumnProductSum(grad, b.value(self.x), b.sums[self.weight]))
        if b.needs(self.x):
            b.add(self.x, multiply_columns(grad, self.weight))


@dataclass(eq=False, repr=False)
class Choose(Node):
    """The rows of `other` where the table of the batch named `scales` does not have 0, and else those of x."""

    x: Value
    other: Value
    scales: str

    @property
    def width(self) -> int:
        return self.x.width


def narrow(x: Value, weight: Tensor, scale: float = 1.0, scales: str | None = None) -> Value:
    return x.graph.record(Narrow(x, weight, scale, scales))


def widen(y: Value, h: Value, weight: Tensor, scale: float = 1.0, scales: str | None = None) -> Value:
    return y.graph.record(Widen(y, h, weight, scale, scales))


def add_scaled(y: Value, x: Value, scale: float = 1.0, scales: str | None = None) -> Value:
    return y.graph.record(AddScaled(y, x, scale, scales))


def multiply_columns(x: Value, weight: Tensor) -> Value:
    return x.graph.record(MultiplyColumns(x, weight))


def choose(x: Value, other: Value, scales: str) -> Value:
    return x.graph.record(Choose(x, other, scales))
