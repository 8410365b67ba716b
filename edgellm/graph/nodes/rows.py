"""Steps that choose or summarize: rows of a batch, the largest numbers of a row."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.graph.nodes.base import Node, Value


@dataclass(frozen=True, eq=False)
class SelectRows(Node):
    """The rows of x that the batch names: the tokens whose logits are wanted."""

    x: Value

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(frozen=True, eq=False)
class Maxima(Node):
    """The largest of every `group` neighbouring numbers of a row; the last group may be smaller."""

    x: Value
    group: int

    @property
    def width(self) -> int:
        return -(-self.x.width // self.group)


def select_rows(x: Value, name: str = "") -> Value:
    return x.graph.record(SelectRows(x), name)


def maxima(x: Value, group: int, name: str = "") -> Value:
    return x.graph.record(Maxima(x, group), name)
