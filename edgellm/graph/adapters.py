"""Adapters in a graph: small trained steps put in beside the linears of a model (LoRA; Hu et al., 2021).

Which rows of a batch they change is said by a table of the batch: so sequences with other adapters, or none, stand
beside each other in one batch, and what an adapter does not change stays as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Embed, Graph, Linear, Node, Value, choose, embed, multiply_columns, narrow, widen

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, eq=False)
class LowRank:
    """y + scale * B A x beside y = W x.

    a:        float32 [rank, n_in]; for embeddings, where a row is looked up instead, [n_vocab, rank].
    b:        float32 [rank, n_out]: B transposed, so that both are read row by row.
    scales:   the table of the batch with a factor for every row; None is 1 for all.
    columns:  float32 [n_out], by what the columns of the sum are multiplied then (DoRA; Liu et al., 2024).
    """

    a: Tensor
    b: Tensor
    scale: float
    scales: str | None = None
    columns: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Instead:
    """Another weight in place of the model's, for the rows to which the table `scales` gives something else than 0."""

    weight: Tensor
    scales: str


Change = LowRank | Instead


def adapted(graph: Graph, changes: Mapping[str, Sequence[Change]]) -> tuple[Graph, dict[Value, Value]]:
    """The same graph with changes beside the nodes that use a weight, by its name; and what became of each value.

    Changes of one weight follow each other. A matrix that makes logits is "output.weight", also where the embeddings
    serve as that.
    """
    result, values = Graph(), {}
    for value in graph.inputs:
        values[value] = result.input(value.width, value.name)
    for node in graph.nodes:
        inputs = {
            field.name: values[content]
            for field in fields(node)
            if isinstance(content := getattr(node, field.name), Value)
        }
        steps = [step for name in names_of_weights(node) for step in changes.get(name, ())]
        # Before the linear: so gradients, which go backwards, find something to add to.
        begun = [_begin(result, node, inputs, step) for step in steps]
        made = list(result.record_all(replace(node, **inputs)))
        for step, beside in zip(steps, begun, strict=True):
            made[0] = _end(made[0], beside, step)
        for before, now in zip(graph.all_made_by(node), made, strict=True):
            values[before] = result.name(now, before.name) if before.name else now
    for value in graph.outputs:
        result.output(values[value])
    return result, values


def names_of_weights(node: Node) -> list[str]:
    """What an adapter calls the weights that a node uses."""
    names = [weight.name for weight in node.weights]
    return [OUTPUT if name == EMBEDDING and isinstance(node, Linear) else name for name in names]


def _begin(graph: Graph, node: Node, inputs: Mapping[str, Value], step: Change) -> Value:
    """What a change makes of a node's inputs."""
    if isinstance(step, Instead):
        (field,) = (field.name for field in fields(node) if isinstance(getattr(node, field.name), Tensor))
        fresh: dict[str, Any] = {**inputs, field: step.weight}
        return graph.record(replace(node, **fresh))
    if isinstance(node, Embed):
        return embed(graph, step.a, node.scale)
    return narrow(inputs["x"], step.a, scales=step.scales)


def _end(y: Value, beside: Value, step: Change) -> Value:
    """The value of a node, changed."""
    if isinstance(step, Instead):
        return choose(y, beside, step.scales)
    changed = widen(y, beside, step.b, step.scale, step.scales)
    if step.columns is None:
        return changed
    changed = multiply_columns(changed, step.columns)
    return changed if step.scales is None else choose(y, changed, step.scales)
