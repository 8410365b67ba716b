"""Adapters in a graph: small trained steps put in beside the nodes of a model.

Which rows of a batch they change is said by a table of the batch: so sequences with other adapters, or none, stand
beside each other in one batch, and what an adapter does not change stays as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    Embed,
    Graph,
    KeysValues,
    Linear,
    Node,
    PlainActivation,
    Value,
    activate,
    add,
    add_bias,
    embed,
    linear,
    replace_rows,
)
from edgellm.graph.nodes.base import field_names
from edgellm.graph.nodes.dropout import Chance, dropout
from edgellm.graph.nodes.experts import ExpertLinear, expert_linear
from edgellm.graph.nodes.low_rank import add_scaled, choose, multiply_columns, narrow, widen

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
EMBEDDED = "embd"  # the embeddings of a text, as what it makes is called
Inputs = Mapping[str, Value]


class Change:
    """What an adapter does about a node: to what it is given, beside it, and to what it makes. Each may be nothing."""

    def given(self, inputs: Inputs) -> Inputs:
        """The values that the node takes, by the names of its fields, in place of its own."""
        return inputs

    def beside(self, graph: Graph, node: Node, inputs: Inputs) -> tuple[Value, ...]:
        """Steps that are recorded before the node: so gradients, which go backwards, find something to add to."""
        return ()

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        """The value of the node, changed."""
        return y


@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """y + scale * B A x beside y = W x (LoRA; Hu et al., 2021).

    a:        float32 [rank, n_in]; for embeddings, where a row is looked up instead, [n_vocab, rank].
    b:        float32 [rank, n_out]: B transposed, so that both are read row by row.
    scales:   the table of the batch with a factor for every row; None is 1 for all.
    columns:  float32 [n_out], by what the columns of the sum are multiplied then (DoRA; Liu et al., 2024).
    chance:   what is left out of x at random, for linears in training. With `columns` c it is that of PEFT, where x'
              is what is left of x: W x + c (W x' + scale * B A x') - W x'.
    """

    a: Tensor
    b: Tensor
    scale: float
    scales: str | None = None
    columns: Tensor | None = None
    chance: Chance | None = None

    def beside(self, graph: Graph, node: Node, inputs: Inputs) -> tuple[Value, ...]:
        if isinstance(node, Embed):
            return (embed(graph, self.a, node.scale),)
        x = inputs["x"]
        if self.chance is None:
            return (narrow(x, self.a, scales=self.scales),)
        x = dropout(x, self.chance)
        h = narrow(x, self.a, scales=self.scales)
        if self.columns is None:
            return (h,)
        assert isinstance(node, Linear)
        return h, linear(x, node.weight)

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        h, *again = beside
        base = again[0] if again else y
        changed = widen(base, h, self.b, self.scale, self.scales)
        if self.columns is None:
            return changed
        changed = multiply_columns(changed, self.columns)
        if again:
            changed = add(y, add(changed, multiply_columns(base, _minus_ones(y.width))))
        return changed if self.scales is None else choose(y, changed, self.scales)


@dataclass(frozen=True, eq=False)
class ExpertLowRank(LowRank):
    """The same beside the matrices of experts, each of which has its own: only those of a token's experts are read.

    a:  float32 [n_experts, rank, n_in]. b: float32 [n_experts, n_out, rank]. There are no columns.
    """

    def beside(self, graph: Graph, node: Node, inputs: Inputs) -> tuple[Value, ...]:
        assert isinstance(node, ExpertLinear)
        x, chosen = inputs["x"], inputs.get("chosen")
        if self.chance is not None:
            x = dropout(x, self.chance)
        return (expert_linear(expert_linear(x, self.a, chosen), self.b, chosen),)

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        return add_scaled(y, beside[0], self.scale, self.scales)


@dataclass(frozen=True, eq=False)
class Instead(Change):
    """Another weight in place of the model's, for the rows to which the table `scales` gives something else than 0.

    other:  of a norm, which has two, what stands in place of the other one, if anything does; both are known by their
            names then.
    """

    weight: Tensor
    scales: str
    other: Tensor | None = None

    def beside(self, graph: Graph, node: Node, inputs: Inputs) -> tuple[Value, ...]:
        fields = ((name, getattr(node, name)) for name in field_names(type(node)))
        usual = {name: x for name, x in fields if isinstance(x, Tensor)}
        if len(usual) == 1:
            own = dict.fromkeys(usual, self.weight)
        else:
            by_name = {x.name: x for x in (self.weight, self.other) if x is not None}
            own = {name: by_name.get(x.name, x) for name, x in usual.items()}
        fresh: dict[str, Any] = {**inputs, **own}
        return (graph.record(replace(node, **fresh)),)

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        return choose(y, beside[0], self.scales)


@dataclass(frozen=True, eq=False)
class Prompt(Change):
    """Learnt embeddings in place of those of some tokens (prompt tuning; Lester et al., 2021).

    table:   float32 [n_virtual, n_embd].
    places:  the table of the batch that says which row has which of them, as in `ReplaceRows`.
    """

    table: Tensor
    places: str

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        return replace_rows(y, self.table, self.places)


@dataclass(frozen=True, eq=False)
class Prefix(Change):
    """Learnt keys and values of a layer in place of those of some tokens (prefix tuning; Li and Liang, 2021).

    keys, values:  float32 [n_virtual, width of the layer's], keys as they are once turned by their positions.
    """

    keys: Tensor
    values: Tensor
    places: str

    def given(self, inputs: Inputs) -> Inputs:
        tables = {"keys": self.keys, "values": self.values}
        replaced = {name: replace_rows(inputs[name], table, self.places) for name, table in tables.items()}
        return {**inputs, **replaced}


@dataclass(frozen=True, eq=False)
class Bottleneck(Change):
    """y + up(activation(down(y))) (Houlsby et al., 2019).

    down, up:  float32 [size, width of y], up transposed; biases of [size] and [width].
    scales:    the table of the batch that says which rows are changed, those where it does not have 0; None is all.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: PlainActivation
    scales: str | None = None

    def made(self, y: Value, beside: tuple[Value, ...]) -> Value:
        h = activate(add_bias(narrow(y, self.down), self.down_bias), self.activation)
        changed = add_bias(widen(y, h, self.up), self.up_bias)
        return changed if self.scales is None else choose(y, changed, self.scales)


def adapted(graph: Graph, changes: Mapping[str, Sequence[Change]]) -> tuple[Graph, dict[Value, Value]]:
    """The same graph with changes about nodes, by what `names_of` calls them; and what became of each value.

    Changes of one node follow each other.
    """

    def record(result: Graph, node: Node, inputs: Inputs) -> Iterable[Value]:
        steps = [step for name in names_of(graph, node) for step in changes.get(name, ())]
        for step in steps:
            inputs = step.given(inputs)
        begun = [step.beside(result, node, inputs) for step in steps]
        fresh: dict[str, Any] = {**inputs}
        first, *others = result.record_all(replace(node, **fresh))
        for step, beside in zip(steps, begun, strict=True):
            first = step.made(first, beside)
        return [first, *others]

    return graph.rewritten(record)


def keys_values_name(layer: int) -> str:
    """What an adapter calls the keys and values of a layer, counted from 0."""
    return f"blk.{layer}.keys_values"


def names_of(graph: Graph, node: Node) -> Iterator[str]:
    """What an adapter calls a node: by the weights that it uses, by the name of what it makes, or by its layer.

    A matrix that makes logits is "output.weight", also where the embeddings serve as that.
    """
    for weight in node.weights:
        yield OUTPUT if weight.name == EMBEDDING and isinstance(node, Linear) else weight.name
    if name := graph.made_by(node).name:
        yield name
    if isinstance(node, KeysValues):
        yield keys_values_name([other for other in graph.nodes if isinstance(other, KeysValues)].index(node))


def _minus_ones(n: int) -> Tensor:
    return Tensor.of("-1", np.full(n, -1, np.float32))
