"""Linear layers: y = W x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Linear(Node):
    """W x for weight [n_out, n_in] of any format, or [n_in] for a single row.

    sensitive:  what is rounded here is not evened out by anything after it, as in the head: a way to compute that
                rounds its inputs does so more finely.
    """

    x: Value
    weight: Tensor
    sensitive: bool = False

    @property
    def width(self) -> int:
        return self.weight.shape[0] if len(self.weight.shape) > 1 else 1

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import OuterSum, linear_transposed  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(OuterSum(grad, b.value(self.x), b.sums[self.weight]))
        if b.needs(self.x):
            b.add(self.x, linear_transposed(grad, self.weight))


def linear(x: Value, weight: Tensor, *, sensitive: bool = False, name: str = "") -> Value:
    return x.graph.record(Linear(x, weight, sensitive), name)
