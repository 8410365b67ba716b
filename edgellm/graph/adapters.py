"""Adapters in a graph: small trained steps put in beside the linears of a model (LoRA; Hu et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Graph, Linear, Value, narrow, widen


@dataclass(frozen=True, eq=False)
class LowRank:
    """y + scale * B A x beside y = W x.

    a:       float32 [rank, n_in].
    b:       float32 [rank, n_out]: B transposed, so that both are read row by row.
    scales:  the table of the batch with a factor for every row; None is 1 for all.
    """

    a: Tensor
    b: Tensor
    scale: float
    scales: str | None = None


def adapted(graph: Graph, low_ranks: Mapping[str, Sequence[LowRank]]) -> tuple[Graph, dict[Value, Value]]:
    """The same graph with low-rank steps beside linears, named by their weights; and what became of each value."""
    result, values = Graph(), {}
    for value in graph.inputs:
        values[value] = result.input(value.width, value.name)
    for node in graph.nodes:
        inputs = {
            field.name: values[content]
            for field in fields(node)
            if isinstance(content := getattr(node, field.name), Value)
        }
        steps = low_ranks.get(node.weight.name, ()) if isinstance(node, Linear) else ()
        # Before the linear: so gradients, which go backwards, find something to add to.
        narrowed = [narrow(inputs["x"], step.a, scales=step.scales) for step in steps]
        made = list(result.record_all(replace(node, **inputs)))
        for step, h in zip(steps, narrowed, strict=True):
            made[0] = widen(made[0], h, step.b, step.scale, step.scales)
        for before, now in zip(graph.all_made_by(node), made, strict=True):
            values[before] = result.name(now, before.name) if before.name else now
    for value in graph.outputs:
        result.output(values[value])
    return result, values
