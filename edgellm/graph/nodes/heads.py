"""Heads taken apart and put together: where some dimensions of a head are turned, and others not (DeepSeek)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.errors import UsageError
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class SliceHeads(Node):
    """`size` dimensions of every head, from `start` on."""

    x: Value
    n_heads: int
    start: int
    size: int

    @property
    def width(self) -> int:
        return self.n_heads * self.size

    def backward(self, b: Backward, grad: Value) -> None:
        b.add(self.x, b.graph.record(HeadsAmongZeros(grad, self.n_heads, self.start, self.x.width // self.n_heads)))


@dataclass(eq=False, repr=False)
class HeadsAmongZeros(Node):
    """Every head of x as dimensions of a larger one, from `start` on, and 0 as the others: for gradients."""

    x: Value
    n_heads: int
    start: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.n_heads * self.head_dim


@dataclass(eq=False, repr=False)
class JoinHeads(Node):
    """Every head of a with the same one of b behind it, or with b's only one."""

    a: Value
    b: Value
    n_heads: int
    b_heads: int

    @property
    def width(self) -> int:
        return self.a.width + self.n_heads * (self.b.width // self.b_heads)


def slice_heads(x: Value, n_heads: int, start: int, size: int, name: str = "") -> Value:
    """Raises UsageError for dimensions that a head does not have."""
    if x.width % n_heads or not 0 <= start <= start + size <= x.width // n_heads:
        raise UsageError(f"dimensions {start} to {start + size} of {n_heads} heads that are {x.width} wide together")
    return x.graph.record(SliceHeads(x, n_heads, start, size), name)


def join_heads(a: Value, b: Value, n_heads: int, b_heads: int | None = None, name: str = "") -> Value:
    """b_heads: how many b has, n_heads or 1. Raises UsageError for another number."""
    b_heads = n_heads if b_heads is None else b_heads
    if b_heads not in (1, n_heads) or a.width % n_heads or b.width % b_heads:
        raise UsageError(f"{b_heads} heads, {b.width} wide, do not go with {n_heads}, {a.width} wide")
    return a.graph.record(JoinHeads(a, b, n_heads, b_heads), name)
