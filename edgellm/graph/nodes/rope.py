"""Rotary position embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(frozen=True, eq=False)
class Rotation:
    """How fast each pair of a head's dimensions turns, and which dimensions make a pair.

    frequencies:  float64 [n_rot / 2], radians for each position. Dimensions beyond n_rot stay as they are.
    interleaved:  pairs are neighbours (2i, 2i + 1); otherwise (i, i + n_rot / 2).
    """

    frequencies: np.ndarray
    interleaved: bool


@dataclass(frozen=True, eq=False)
class Rope(Node):
    """The leading dimensions of every head turned by the token's position (Su et al., 2021); inverse: turned back."""

    x: Value
    n_heads: int
    rotation: Rotation
    inverse: bool = False

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        # A turn keeps lengths, so the gradient is turned back.
        b.add(self.x, b.graph.record(replace(self, x=grad, inverse=not self.inverse)))


def rope(x: Value, n_heads: int, rotation: Rotation, name: str = "") -> Value:
    return x.graph.record(Rope(x, n_heads, rotation), name)
