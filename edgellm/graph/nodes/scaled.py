"""Rows multiplied, softly capped, or cut into columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.dataclass import dataclass
from edgellm.errors import UsageError
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Scale(Node):
    """factor * x"""

    x: Value
    factor: float

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        b.add(self.x, b.graph.record(Scale(grad, self.factor)))


@dataclass(eq=False, repr=False)
class SoftCap(Node):
    """cap * tanh(x / cap): about x where it is small, and never beyond cap (Gemma 2)."""

    x: Value
    cap: float

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import SoftCapBackward  # which training alone needs

        made = b.value(b.forward.made_by(self))
        b.add(self.x, b.graph.record(SoftCapBackward(made, grad, self.cap)))


@dataclass(eq=False, repr=False)
class Columns(Node):
    """The columns first to first + n_cols - 1 of x."""

    x: Value
    first: int
    n_cols: int

    @property
    def width(self) -> int:
        return self.n_cols

    def backward(self, b: Backward, grad: Value) -> None:
        b.add(self.x, b.graph.record(AmongZeros(grad, self.first, self.x.width)))


@dataclass(eq=False, repr=False)
class AmongZeros(Node):
    """x as columns from `first` on, of n_cols; the others are 0: the gradient of what `Columns` took x from."""

    x: Value
    first: int
    n_cols: int

    @property
    def width(self) -> int:
        return self.n_cols


def scale(x: Value, factor: float, name: str = "") -> Value:
    return x.graph.record(Scale(x, factor), name)


def soft_cap(x: Value, cap: float, name: str = "") -> Value:
    return x.graph.record(SoftCap(x, cap), name)


def columns(x: Value, first: int, n_cols: int, name: str = "") -> Value:
    """Raises UsageError for columns that x does not have."""
    if not 0 <= first < first + n_cols <= x.width:
        raise UsageError(f"columns {first} to {first + n_cols} of {x.width}")
    return x.graph.record(Columns(x, first, n_cols), name)


def among_zeros(x: Value, first: int, n_cols: int) -> Value:
    return x.graph.record(AmongZeros(x, first, n_cols))


def split_columns(x: Value, *widths: int) -> list[Value]:
    """x cut into neighbours of these widths, which add up to its own."""
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return [columns(x, start, width) for start, width in zip(starts, widths, strict=True)]
