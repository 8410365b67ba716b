"""Steps that choose or summarize: rows of a batch, the largest numbers of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.dataclass import dataclass
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class SelectRows(Node):
    """The rows of x that the batch names: the tokens whose logits are wanted."""

    x: Value

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(eq=False, repr=False)
class Maxima(Node):
    """The largest of every `group` neighbouring numbers of a row; the last group may be smaller."""

    x: Value
    group: int

    @property
    def width(self) -> int:
        return -(-self.x.width // self.group)


@dataclass(eq=False, repr=False)
class ReplaceRows(Node):
    """x, but for the rows that are those of a table: of learnt tokens.

    table:   float32 [n_rows, width]; None is one of zeros.
    places:  the table of the batch that says which of its rows each row takes: i for row i - 1, and 0 for none.
    """

    x: Value
    table: Tensor | None
    places: str

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import ReplacedRowsSum  # which training alone needs

        if self.table is not None and b.trains(self.table):
            b.add_sum(ReplacedRowsSum(grad, b.sums[self.table], self.places))
        if b.needs(self.x):
            b.add(self.x, replace_rows(grad, None, self.places))


def replace_rows(x: Value, table: Tensor | None, places: str) -> Value:
    return x.graph.record(ReplaceRows(x, table, places))


def select_rows(x: Value, name: str = "") -> Value:
    return x.graph.record(SelectRows(x), name)


def maxima(x: Value, group: int, name: str = "") -> Value:
    return x.graph.record(Maxima(x, group), name)
