"""Values kept in half the memory: rounded to bfloat16, and as float32 again."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.graph.nodes.base import Node, Value


@dataclass(eq=False, repr=False)
class ToBF16(Node):
    """x rounded to bfloat16, two numbers in the place of one: only `FromBF16` can read it."""

    x: Value

    @property
    def width(self) -> int:
        return -(-self.x.width // 2)


@dataclass(eq=False, repr=False)
class FromBF16(Node):
    """The `n_cols` numbers of a row that `ToBF16` made."""

    x: Value
    n_cols: int

    @property
    def width(self) -> int:
        return self.n_cols
