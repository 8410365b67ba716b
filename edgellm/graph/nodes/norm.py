"""Norms: rows, or heads, brought to one size."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value


@dataclass(frozen=True, eq=False)
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


def rms_norm(x: Value, weight: Tensor, epsilon: float, n_heads: int = 1, name: str = "") -> Value:
    return x.graph.record(RMSNorm(x, weight, epsilon, n_heads), name)
