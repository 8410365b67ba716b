"""Norms: rows, or heads, brought to one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class RMSNorm(Node):
    """x / sqrt(mean(x**2) + epsilon) * weight (Zhang and Sennrich, 2019), of each of `n_heads` equal parts of a row.

    weight:  [width / n_heads], the same for every part.
    """

    x: Value
    weight: Tensor
    epsilon: float
    n_heads: int = 1

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import RMSNormBackward, RMSNormWeightSum  # which training alone needs

        x = b.value(self.x)
        if b.trains(self.weight):
            b.add_sum(RMSNormWeightSum(x, grad, b.sums[self.weight], self.epsilon, self.n_heads))
        if b.needs(self.x):
            b.add(self.x, b.graph.record(RMSNormBackward(x, grad, self.weight, self.epsilon, self.n_heads)))


@dataclass(eq=False, repr=False)
class LayerNorm(Node):
    """(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias (Ba et al., 2016), of each of `n_heads` parts.

    weight, bias:  [width / n_heads], the same for every part; or [n_heads, width / n_heads].
    """

    x: Value
    weight: Tensor
    bias: Tensor | None
    epsilon: float
    n_heads: int = 1

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import LayerNormBackward, LayerNormSums  # which training alone needs

        x = b.value(self.x)
        to, bias_to = b.sums.get(self.weight), None if self.bias is None else b.sums.get(self.bias)
        if to is not None or bias_to is not None:
            b.add_sum(LayerNormSums(x, grad, to, bias_to, self.epsilon, self.n_heads))
        if b.needs(self.x):
            b.add(self.x, b.graph.record(LayerNormBackward(x, grad, self.weight, self.epsilon, self.n_heads)))


def layer_norm(
    x: Value, weight: Tensor, bias: Tensor | None, epsilon: float, n_heads: int = 1, name: str = ""
) -> Value:
    return x.graph.record(LayerNorm(x, weight, bias, epsilon, n_heads), name)


def rms_norm(x: Value, weight: Tensor, epsilon: float, n_heads: int = 1, name: str = "") -> Value:
    return x.graph.record(RMSNorm(x, weight, epsilon, n_heads), name)
