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


class Balance:
    """The loss that keeps a router from giving all tokens to few of its experts (Fedus et al., 2021), on the way back.

    Of n experts, n * sum over e of F_e P_e: F_e is how many tokens of a pass have expert e, as a share of all tokens,
    and P_e the mean of their softmax for it. It is lowest, n_used, where all experts have equally many. F is taken for
    given, so the gradient goes through P.

    scale:  float32 [1], what the gradient by each router's logits is multiplied by; to be set before a pass.
    seen:   of each router float32 [2, n_experts], what a pass found: how many tokens each expert had, and the sum of
            its softmax over all tokens.
    """

    def __init__(self) -> None:
        self.scale = np.zeros(1, np.float32)
        self.seen: list[np.ndarray] = []

    def gradient(self, logits: Value, chosen: Value) -> Value:
        """By the logits of one more router."""
        self.seen.append(np.zeros((2, logits.width), np.float32))
        return logits.graph.record(BalanceGradient(logits, chosen, self.scale, self.seen[-1]))

    def loss(self, n_tokens: int) -> float:
        """The mean over routers of what it was in the last pass, which had so many tokens."""
        losses = [len(counts) * float(counts @ sums) / n_tokens**2 for counts, sums in self.seen]
        return sum(losses) / len(losses)


@dataclass(eq=False, repr=False)
class BalanceGradient(Node):
    """By the logits of a router, of what `Balance` says, whose fields the arrays are."""

    logits: Value
    chosen: Value
    scale: np.ndarray
    seen: np.ndarray

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
