"""Nodes and values: what a forward pass is. Nothing here knows how it is computed, or where.

A node is one step: its kind (the class), the values and weights that it needs, its attributes, and the one value
that it makes. A value is made once and never changed (single assignment), so any of them can be looked at, and the
same record serves every way to compute it.

    g = Graph()
    x = embed(g, weights)                    # a value
    h = rms_norm(x, norm_weight, 1e-5)       # another one; x is what it was
    g.values["embd"], g.nodes                # what was recorded
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from edgellm.errors import UnsupportedError, UsageError
from edgellm.formats.tensor import Tensor

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward

_FIELD_NAMES: dict[type[Node], tuple[str, ...]] = {}


@dataclass(eq=False)
class Value:
    """float32 [n_tokens, width]: a row for each token of a batch.

    name:  by which it can be read or replaced (`blk.3.attn_out`); empty for what nobody needs to look at.
    node:  what makes it; None for an input of the graph.
    """

    width: int
    name: str = ""
    node: Node | None = None
    _graph: weakref.ref[Graph] | None = None  # which has all its values: so both go at once

    @property
    def graph(self) -> Graph:
        """The record that it is part of; somebody must keep it."""
        graph = self._graph() if self._graph is not None else None
        if graph is None:
            raise UsageError("the graph of this value is gone")
        return graph


@dataclass(eq=False, repr=False)
class Node:
    """One step of a forward pass. A subclass is a kind of node, its fields are values, weights and attributes.

    A field that may be a value or None, or a tensor or None, is left out where it is None. Nobody changes a node;
    its class is not frozen because frozen ones take three times as long to make, and a start makes all of these.

    graded:     which of its values has a gradient, where it makes several.
    is_choice:  it chooses what others compute. So on the way back its values are those of the way there, as they were.
    """

    graded: ClassVar[int] = 0
    is_choice: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return type(self).__name__

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The values that it needs, in the order of its fields."""
        return tuple(self._fields_of(Value))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The tensors that it needs."""
        return tuple(self._fields_of(Tensor))

    @property
    def attributes(self) -> dict[str, Any]:
        """Everything else that it was told, by name."""
        contents = ((name, getattr(self, name)) for name in field_names(type(self)))
        return {name: content for name, content in contents if not isinstance(content, Value | Tensor)}

    @property
    def width(self) -> int:
        """Of the value that it makes."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all values that it makes, where they are several."""
        return (self.width,)

    @property
    def n_state(self) -> int:
        """Numbers that it keeps of a text from one token to the next, float32; 0 where a token is by itself, or looks
        at the cache.
        """
        return 0

    def marks_of_copy(self) -> dict[str, Any]:
        """Fields that differ where a node is recorded once more, to compute its value again."""
        return {}

    def backward(self, b: Backward, grad: Value) -> None:
        """Add to the gradients of its inputs and weights, given that of its value: how much the loss grows with each
        of its numbers. Raises UnsupportedError for a kind of node that cannot be trained through.
        """
        raise UnsupportedError(f"training through a node of the kind {self.kind} is not built yet")

    def _fields_of(self, kind: type) -> Iterator[Any]:
        contents = (getattr(self, name) for name in field_names(type(self)))
        return (content for content in contents if isinstance(content, kind))


def field_names(kind: type[Node]) -> tuple[str, ...]:
    """What a kind of node is told, by name; kept, as every node of every layer is asked."""
    if kind not in _FIELD_NAMES:
        _FIELD_NAMES[kind] = tuple(field.name for field in fields(kind))
    return _FIELD_NAMES[kind]


def inputs_of(node: Node, values: Mapping[Value, Value]) -> dict[str, Value]:
    """What each of its inputs became, by the names of its fields."""
    contents = ((name, getattr(node, name)) for name in field_names(type(node)))
    return {name: values[content] for name, content in contents if isinstance(content, Value)}


class Graph:
    """The record of a forward pass, in the order in which an architecture stated it.

    nodes:    every node, each after those that make its inputs.
    inputs:   values that come from outside.
    outputs:  values that are wanted in the end.
    values:   those that have a name, by their names.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.values: dict[str, Value] = {}
        self._made: dict[Node, tuple[Value, ...]] = {}

    def input(self, width: int, name: str = "") -> Value:
        """Rows that somebody else fills."""
        value = Value(width, _graph=weakref.ref(self))
        self.inputs.append(value)
        return self.name(value, name) if name else value

    def output(self, value: Value, name: str = "") -> Value:
        """Mark a value as wanted in the end."""
        named = self.name(value, name) if name else value
        self.outputs.append(value)
        return named

    def record(self, node: Node, name: str = "") -> Value:
        """Add a node; returns the value that it makes."""
        (value,) = self.record_all(node)
        return self.name(value, name) if name else value

    def record_all(self, node: Node) -> tuple[Value, ...]:
        """Add a node that makes several values."""
        if any(value.graph is not self for value in node.inputs):
            raise UsageError(f"{node.kind} takes a value of another graph")
        made = tuple(Value(width, node=node, _graph=weakref.ref(self)) for width in node.widths)
        self._made[node] = made
        self.nodes.append(node)
        return made

    def name(self, value: Value, name: str) -> Value:
        """Give a value a name of its own. Raises UsageError when another value has it already."""
        if name in self.values or value.name:
            raise UsageError(f"two names for one value, or two values of one name: {value.name!r}, {name!r}")
        value.name = name
        self.values[name] = value
        return value

    def made_by(self, node: Node) -> Value:
        """The value of a node, the first where it makes several."""
        return self._made[node][0]

    def all_made_by(self, node: Node) -> tuple[Value, ...]:
        return self._made[node]

    def needed(self, wanted: Iterable[Value], given: Iterable[Value] = ()) -> list[Node]:
        """The nodes without which `wanted` cannot be made from the inputs and from what is `given`, in order."""
        open_, known = list(wanted), set(given)
        needed: set[Node] = set()
        while open_:
            value = open_.pop()
            if value in known:
                continue
            known.add(value)
            if value.node is not None:
                needed.add(value.node)
                open_ += value.node.inputs
        return [node for node in self.nodes if node in needed]

    def rewritten(
        self, record: Callable[[Graph, Node, dict[str, Value]], Iterable[Value]]
    ) -> tuple[Graph, dict[Value, Value]]:
        """Another graph of the same inputs, outputs and names, whose steps somebody records; what each value became.

        record:  given the new graph, a node, and what its inputs became by the names of its fields, records what stands
                 in its place, and returns what is there of the node's values.
        """
        result, values = Graph(), {}
        for value in self.inputs:
            values[value] = result.input(value.width, value.name)
        for node in self.nodes:
            made = record(result, node, inputs_of(node, values))
            for before, now in zip(self.all_made_by(node), made, strict=True):
                values[before] = result.name(now, before.name) if before.name else now
        for value in self.outputs:
            result.output(values[value])
        return result, values
