"""Mixtures of experts (Shazeer et al., 2017): a router gives every token a few of many matrices.

chosen, weights = route(linear(x, router), routing)     # which experts, and how much each counts
gate = expert_linear(x, w_gate, chosen)                 # of each token, the results of its experts side by side
...
y = sum_experts(expert_linear(h, w_down, chosen), weights)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from edgellm.errors import UnsupportedError, UsageError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward

Scoring = Literal["softmax", "sigmoid", "logits"]


class Routing(NamedTuple):
    """How experts are chosen, and what they count.

    n_used:         experts of each token.
    scoring:        a score is the softmax of the logits over all experts, or the logistic of its own; "logits": experts
                    are chosen by logits, and count the softmax over those chosen.
    normalize:      the weights of a token are divided by their sum.
    scale:          by what they are multiplied then.
    n_groups:       experts come in so many equal groups, of which the best n_groups_used count (DeepSeek-AI, 2024).
    n_ranked:       a group is as good as so many of its best experts together.
    """

    n_used: int
    scoring: Scoring = "softmax"
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    n_groups_used: int = 1
    n_ranked: int = 1


@dataclass(eq=False, repr=False)
class Route(Node):
    """The numbers of each token's experts, best first, and their weights: two values, n_used wide.

    bias:    [n_experts], added to the scores by which experts are chosen, and not to what they count.
    scales:  [n_experts], by what the weight of each is multiplied in the end.
    """

    graded: ClassVar[int] = 1
    is_choice: ClassVar[bool] = True

    logits: Value
    bias: Tensor | None
    scales: Tensor | None
    routing: Routing

    @property
    def widths(self) -> tuple[int, ...]:
        return self.routing.n_used, self.routing.n_used

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.expert_gradients import RouteBackward  # which training alone needs

        if self.scales is not None and b.trains(self.scales):
            raise UnsupportedError(f"training scales of experts is not built yet ({self.scales.name}); freeze them")
        if b.needs(self.logits):
            chosen, _ = map(b.value, b.forward.all_made_by(self))
            logits = b.value(self.logits)
            b.add(self.logits, b.graph.record(RouteBackward(logits, chosen, grad, self.scales, self.routing)))
            if b.balance is not None:
                b.add(self.logits, b.balance.gradient(logits, chosen))


@dataclass(eq=False, repr=False)
class ExpertLinear(Node):
    """W x for the matrices [n_experts, n_out, n_in] of each token's experts, their results side by side.

    x:       [n_in], the same for all experts of a token, or [n_used * n_in], one for each.
    chosen:  of `Route`; None: every token has all matrices, in their order.
    """

    x: Value
    weight: Tensor
    chosen: Value | None

    @property
    def n_used(self) -> int:
        return self.weight.shape[0] if self.chosen is None else self.chosen.width

    @property
    def width(self) -> int:
        return self.n_used * self.weight.shape[1]

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.expert_gradients import ExpertLinearTransposed, ExpertOuterSum, sum_parts

        chosen = None if self.chosen is None else b.value(self.chosen)
        if b.trains(self.weight):
            b.add_sum(ExpertOuterSum(grad, b.value(self.x), chosen, b.sums[self.weight]))
        if b.needs(self.x):
            made = b.graph.record(ExpertLinearTransposed(grad, self.weight, chosen))
            b.add(self.x, made if self.x.width == made.width else sum_parts(made, self.n_used))


@dataclass(eq=False, repr=False)
class AddExpertBias(Node):
    """x + bias of each expert, for bias [n_experts, n_out] and x [n_used * n_out]."""

    x: Value
    bias: Tensor
    chosen: Value

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.expert_gradients import ExpertBiasSum  # which training alone needs

        if b.trains(self.bias):
            b.add_sum(ExpertBiasSum(grad, b.value(self.chosen), b.sums[self.bias]))
        if b.needs(self.x):
            b.add(self.x, grad)


@dataclass(eq=False, repr=False)
class SumExperts(Node):
    """The results x [n_used * n] of a token's experts, each times its weight, added up: [n]."""

    x: Value
    expert_weights: Value

    @property
    def width(self) -> int:
        return self.x.width // self.expert_weights.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.expert_gradients import SumExpertsBackward  # which training alone needs

        made = b.graph.record_all(SumExpertsBackward(b.value(self.x), b.value(self.expert_weights), grad))
        b.add_needed((self.x, self.expert_weights), made)


@dataclass(eq=False, repr=False)
class Gate(Node):
    """x * sigmoid(gate), for a gate as wide as x, or of one number."""

    x: Value
    gate: Value

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.expert_gradients import GateBackward  # which training alone needs

        made = b.graph.record_all(GateBackward(b.value(self.x), b.value(self.gate), grad))
        b.add_needed((self.x, self.gate), made)


def route(
    logits: Value, routing: Routing, bias: Tensor | None = None, scales: Tensor | None = None
) -> tuple[Value, Value]:
    """Raises UsageError for groups or numbers of experts that do not fit."""
    n, r = logits.width, routing
    size = n // r.n_groups
    fits = n % r.n_groups == 0 and 1 <= r.n_groups_used <= r.n_groups and 1 <= r.n_ranked <= size
    if not fits or not 1 <= r.n_used <= r.n_groups_used * size:
        raise UsageError(
            f"{r.n_used} of {n} experts, in {r.n_groups_used} of {r.n_groups} groups that are as good as {r.n_ranked} "
            "of theirs"
        )
    chosen, weights = logits.graph.record_all(Route(logits, bias, scales, routing))
    return chosen, weights


def expert_linear(x: Value, weight: Tensor, chosen: Value | None = None, name: str = "") -> Value:
    """Raises UsageError for an x that is neither as wide as an expert's input nor as those of all."""
    node = ExpertLinear(x, weight, chosen)
    n_in = weight.shape[2]
    if x.width not in (n_in, node.n_used * n_in):
        raise UsageError(f"{node.n_used} experts of {n_in} inputs are given {x.width}")
    return x.graph.record(node, name)


def add_expert_bias(x: Value, bias: Tensor, chosen: Value, name: str = "") -> Value:
    return x.graph.record(AddExpertBias(x, bias, chosen), name)


def sum_experts(x: Value, weights: Value, name: str = "") -> Value:
    return x.graph.record(SumExperts(x, weights), name)


def gate(x: Value, by: Value, name: str = "") -> Value:
    """Raises UsageError for a gate that is neither one number nor as wide as x."""
    if by.width not in (1, x.width):
        raise UsageError(f"a gate of {by.width} numbers for rows of {x.width}")
    return x.graph.record(Gate(x, by), name)
