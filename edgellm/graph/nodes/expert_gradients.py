"""Steps of a backward pass through mixtures of experts; see `gradients.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value
from edgellm.graph.nodes.experts import Routing
from edgellm.graph.nodes.gradients import Sum


@dataclass(eq=False, repr=False)
class RouteBackward(Node):
    """By the logits of `Route`, from the gradient by its weights: which experts it chose stays as it is."""

    logits: Value
    chosen: Value
    dy: Value
    scales: Tensor | None
    routing: Routing

    @property
    def width(self) -> int:
        return self.logits.width


@dataclass(eq=False, repr=False)
class ExpertLinearTransposed(Node):
    """W^T dy for the matrices of each token's experts, their results side by side: [n_used * n_in]."""

    dy: Value
    weight: Tensor
    chosen: Value | None

    @property
    def n_used(self) -> int:
        return self.weight.shape[0] if self.chosen is None else self.chosen.width

    @property
    def width(self) -> int:
        return self.n_used * self.weight.shape[2]


@dataclass(eq=False, repr=False)
class SumParts(Node):
    """The n_parts equal parts of every row, added up."""

    x: Value
    n_parts: int

    @property
    def width(self) -> int:
        return self.x.width // self.n_parts


@dataclass(eq=False, repr=False)
class SumExpertsBackward(Node):
    """By both inputs of `SumExperts`."""

    x: Value
    expert_weights: Value
    dy: Value

    @property
    def widths(self) -> tuple[int, ...]:
        return self.x.width, self.expert_weights.width


@dataclass(eq=False, repr=False)
class GateBackward(Node):
    """By both inputs of `Gate`."""

    x: Value
    gate: Value
    dy: Value

    @property
    def widths(self) -> tuple[int, ...]:
        return self.x.width, self.gate.width


@dataclass(eq=False, repr=False)
class ExpertOuterSum(Sum):
    """By the weights of `ExpertLinear`: to [n_experts, n_out, n_in] += outer products, summed over the rows.

    a:  the gradient, [n_used * n_out]. b: the input, of a token or of each of its experts.
    """

    a: Value
    b: Value
    chosen: Value | None
    to: np.ndarray


@dataclass(eq=False, repr=False)
class ExpertBiasSum(Sum):
    """to [n_experts, n_out] += the parts of a that are each expert's."""

    a: Value
    chosen: Value
    to: np.ndarray


def sum_parts(x: Value, n_parts: int) -> Value:
    return x.graph.record(SumParts(x, n_parts))
