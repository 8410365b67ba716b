"""Gradients: the nodes of a forward pass gone through backwards, as the nodes of another graph (backpropagation).

Every kind of node says how the gradient of its value becomes that of its inputs (`Node.backward`, beside its forward).
A `Backward` collects these steps, adds up what meets at one value, and leaves out what no trainable weight depends on.

    b = Backward(forward, {weight: gradient_memory, ...}, is_kept)
    b.seed(hidden)              # whose gradient somebody fills in, with every run
    b.walk()
    b.kept                      # values of the forward pass that must be there; the others are computed again

What the forward pass found is needed again on the way back. It is kept, or computed once more from what is kept: that
costs time and saves memory (gradient checkpointing; Chen et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Graph, Node, Value, inputs_of
from edgellm.graph.nodes.elementwise import add
from edgellm.graph.nodes.linear import Linear
from edgellm.graph.nodes.precision import FromBF16, ToBF16

if TYPE_CHECKING:
    from edgellm.graph.nodes.expert_gradients import Balance


def kept_in_bf16(graph: Graph, kept: Iterable[Value]) -> tuple[Graph, dict[Value, Value], dict[Value, Value]]:
    """A graph that keeps some values as bfloat16, made right behind them; what became of each value; what is kept."""
    wanted, halves = set(kept), {}

    def record(result: Graph, node: Node, inputs: dict[str, Value]) -> Iterable[Value]:
        made = result.record_all(replace(node, **inputs))
        for before, now in zip(graph.all_made_by(node), made, strict=True):
            if before in wanted:
                halves[before] = now if node.is_choice else result.record(ToBF16(now))
        return made

    result, values = graph.rewritten(record)
    return result, values, halves


class Backward:
    """The gradients of a graph, while they are recorded.

    graph:    the nodes of the backward pass.
    kept:     values of the forward pass that it reads, and its inputs that hold them.
    seeds:    values of the forward pass whose gradients come from outside, and its inputs that hold these.
    found:    the gradient of each value of the forward pass that has one.
    sums:     where the gradients of trainable weights are added up, float32 of the weight's shape.
    is_kept:  whether a value of the forward pass is there, or is computed again.
    wanted:   values whose gradients are wanted beside; nothing before them is gone through.
    in_bf16:  whether what is kept is there as `ToBF16` makes it.
    balance:  a loss of routers, whose gradient is added to that of the seeds.
    is_coarse:  what is computed again need not be finer than the rest is (see `Linear.sensitive`).
    """

    def __init__(
        self,
        forward: Graph,
        sums: Mapping[Tensor, np.ndarray],
        is_kept: Callable[[Value], bool] = lambda value: True,
        wanted: Iterable[Value] = (),
        is_coarse: bool = False,
        in_bf16: bool = False,
        balance: Balance | None = None,
    ) -> None:
        self.graph = Graph()
        self.forward, self.sums, self.balance = forward, dict(sums), balance
        self.kept: dict[Value, Value] = {}
        self.seeds: dict[Value, Value] = {}
        self.found: dict[Value, Value] = {}
        self._is_kept, self._is_coarse, self._in_bf16 = is_kept, is_coarse, in_bf16
        self._copies: dict[Value, Value] = {}
        self._ends = frozenset(wanted)
        self._wanted: set[Value] = set(self._ends)

    # --- for nodes ------------------------------------------------------------------------------------------

    def value(self, value: Value) -> Value:
        """What the forward pass found, in this graph."""
        if value not in self._copies:
            if value.node is None or value.node.is_choice or self._is_kept(value):
                self._copies[value] = self._input_for(value)
            else:
                self._compute_again(value.node)
        return self._copies[value]

    def needs(self, value: Value) -> bool:
        """Whether some trainable weight had a part in a value, so that its gradient is wanted."""
        return value in self._wanted

    def trains(self, weight: Tensor) -> bool:
        return weight in self.sums

    def add(self, value: Value, gradient: Value) -> None:
        """One more part of the gradient of a value."""
        before = self.found.get(value)
        self.found[value] = gradient if before is None else add(before, gradient)

    def add_needed(self, values: Iterable[Value], gradients: Iterable[Value]) -> None:
        """The same for several values, as far as their gradients are wanted."""
        for value, gradient in zip(values, gradients, strict=True):
            if self.needs(value):
                self.add(value, gradient)

    def add_sum(self, node: Node) -> None:
        """A step that adds to the gradient of a weight."""
        self.graph.output(self.graph.record(node))

    # --- for who trains -------------------------------------------------------------------------------------

    def seed(self, value: Value) -> Value:
        """An input of this graph for the gradient of a value, which somebody fills in."""
        self.seeds[value] = gradient = self.graph.input(value.width)
        self.add(value, gradient)
        return gradient

    def walk(self) -> None:
        """Go through the forward pass backwards, from the seeds to the first trainable weight."""
        for node in self.forward.nodes:
            if any(map(self.trains, node.weights)) or any(map(self.needs, node.inputs)):
                self._wanted.update(self.forward.all_made_by(node))
        for node in reversed(self.forward.nodes):
            value = self.forward.all_made_by(node)[node.graded]
            if value in self.found and self.needs(value) and value not in self._ends:
                node.backward(self, self.found[value])

    def _input_for(self, value: Value) -> Value:
        if not self._in_bf16 or value.node is None or value.node.is_choice:
            self.kept[value] = self.graph.input(value.width)
            return self.kept[value]
        self.kept[value] = self.graph.input(-(-value.width // 2))
        return self.graph.record(FromBF16(self.kept[value], value.width))

    def _compute_again(self, node: Node) -> None:
        """Record a node of the forward pass here, and before it what it needs."""
        changes = node.marks_of_copy()
        if self._is_coarse and isinstance(node, Linear):
            changes["sensitive"] = False
        inputs = inputs_of(node, {value: self.value(value) for value in node.inputs})
        copy = replace(node, **{**inputs, **changes})
        made = self.graph.record_all(copy)
        self._copies.update(zip(self.forward.all_made_by(node), made, strict=True))
