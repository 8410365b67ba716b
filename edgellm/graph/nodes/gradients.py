"""Steps of a backward pass: what turns the gradient of a node's value into those of its inputs and weights.

`dy` is the gradient of the loss by what the node made, row for row. A step that ends in a weight adds to memory of
float32, over all rows of a batch and from one batch to the next; it makes a value without width, which stands for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.nodes.attention import AttentionSpec
    from edgellm.graph.nodes.elementwise import Gate, PlainActivation


@dataclass(eq=False, repr=False)
class LinearTransposed(Node):
    """W^T dy, for weight [n_out, n_in] of any format."""

    dy: Value
    weight: Tensor

    @property
    def width(self) -> int:
        return self.weight.shape[1]


@dataclass(eq=False, repr=False)
class RMSNormBackward(Node):
    """By x of `RMSNorm`: (g - x mean(g x) / s**2) / s with g = dy * weight, s = sqrt(mean(x**2) + epsilon)."""

    x: Value
    dy: Value
    weight: Tensor
    epsilon: float
    n_heads: int

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(eq=False, repr=False)
class LayerNormBackward(Node):
    """By x of `LayerNorm`: (g - mean(g) - z mean(g z) / s**2) / s with g = dy * weight, z = x - mean(x), and
    s = sqrt(mean(z**2) + epsilon)."""

    x: Value
    dy: Value
    weight: Tensor
    epsilon: float
    n_heads: int

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(eq=False, repr=False)
class SoftCapBackward(Node):
    """By x of `SoftCap`, from the y that it made: dy * (1 - (y / cap)**2)."""

    y: Value
    dy: Value
    cap: float

    @property
    def width(self) -> int:
        return self.dy.width


@dataclass(eq=False, repr=False)
class GLUBackward(Node):
    """By gate and by up of `GLU`."""

    gate: Value
    up: Value
    dy: Value
    activation: Gate

    @property
    def widths(self) -> tuple[int, ...]:
        return self.gate.width, self.up.width


@dataclass(eq=False, repr=False)
class ActivateBackward(Node):
    """By x of `Activate`."""

    x: Value
    dy: Value
    activation: PlainActivation

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(eq=False, repr=False)
class AttentionBackward(Node):
    """By queries, keys and values of `Attention`, for whole documents that stand one behind the other in the batch."""

    q: Value
    k: Value
    v: Value
    dy: Value
    n_heads: int
    n_kv_heads: int
    spec: AttentionSpec

    @property
    def widths(self) -> tuple[int, ...]:
        return self.q.width, self.k.width, self.v.width


@dataclass(eq=False, repr=False)
class CrossEntropy(Node):
    """Negative log-likelihood of each row's target, and its gradient by the logits times the row's weight.

    Targets and weights come with the batch.
    """

    logits: Value
    with_gradient: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        return (1, self.logits.width) if self.with_gradient else (1,)


@dataclass(eq=False, repr=False)
class Sum(Node):
    """Adds to memory: `to`."""

    @property
    def width(self) -> int:
        return 0


@dataclass(eq=False, repr=False)
class OuterSum(Sum):
    """to [width of a, width of b] += scale * a^T b, summed over the rows."""

    a: Value
    b: Value
    to: np.ndarray
    scale: float = 1.0


@dataclass(eq=False, repr=False)
class ColumnSum(Sum):
    """to [width of a] += a, summed over the rows."""

    a: Value
    to: np.ndarray


@dataclass(eq=False, repr=False)
class ColumnProductSum(Sum):
    """to [width of a] += a * b, summed over the rows."""

    a: Value
    b: Value
    to: np.ndarray


@dataclass(eq=False, repr=False)
class RMSNormWeightSum(Sum):
    """By the weight of `RMSNorm`: to [width / n_heads] += dy * x / s, summed over rows and heads."""

    x: Value
    dy: Value
    to: np.ndarray
    epsilon: float
    n_heads: int


@dataclass(eq=False, repr=False)
class LayerNormSums(Sum):
    """By the weight and the bias of `LayerNorm`, as they are shaped: both += dy * z / s, and dy, summed over rows.

    None is for one that is not trained.
    """

    x: Value
    dy: Value
    to: np.ndarray | None
    bias_to: np.ndarray | None
    epsilon: float
    n_heads: int


@dataclass(eq=False, repr=False)
class EmbedSum(Sum):
    """By the weight of `Embed`: to[id] += scale * dy, for the token of every row, or for its position."""

    dy: Value
    to: np.ndarray
    scale: float = 1.0
    by_position: bool = False


@dataclass(eq=False, repr=False)
class ReplacedRowsSum(Sum):
    """By the table of `ReplaceRows`: to[place - 1] += dy, for every row with a place."""

    dy: Value
    to: np.ndarray
    places: str


def linear_transposed(dy: Value, weight: Tensor) -> Value:
    return dy.graph.record(LinearTransposed(dy, weight))
