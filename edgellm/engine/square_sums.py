"""Memory for the squares of what a model's linears are given: what importance matrices are made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgellm.graph.nodes import Graph, Linear, Node, Value
from edgellm.graph.nodes.experts import ExpertLinear
from edgellm.graph.ops import Rows


class SquareSums(dict[str, NDArray[np.float64]]):
    """Sums by the name of a linear's weight, float64 [n_in]; of stacked experts, [n_experts, n_in].

    counts:   of experts, by the same names, how many tokens each had: float64 [n_experts].
    by_value:  the same memory by the value that is added up, float64 [stride].
    by_experts:  and by the linear of experts, with the counts. Linears with one input share what they have.
    """

    def __init__(self, graphs: Iterable[Graph]) -> None:
        super().__init__()
        self.counts: dict[str, NDArray[np.float64]] = {}
        self.by_value: dict[Value, NDArray[np.float64]] = {}
        self.by_experts: dict[Node, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        firsts: dict[tuple[Value, Value | None], ExpertLinear] = {}
        for graph in graphs:
            for node in graph.nodes:
                if isinstance(node, Linear):
                    total = self.by_value.setdefault(node.x, np.zeros(Rows(node.x.width).stride))
                    self[node.weight.name] = total[: node.x.width]
                elif isinstance(node, ExpertLinear):
                    first = firsts.setdefault((node.x, node.chosen), node)
                    n_experts, _, n_in = node.weight.shape
                    found = self.by_experts.setdefault(first, (np.zeros((n_experts, n_in)), np.zeros(n_experts)))
                    self[node.weight.name], self.counts[node.weight.name] = found
