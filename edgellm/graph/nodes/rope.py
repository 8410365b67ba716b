"""Rotary position embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Rotation:
    """How fast each pair of a head's dimensions turns, and which dimensions make a pair.

    frequencies:  float64 [n_rot / 2], radians for each position. Dimensions beyond n_rot stay as they are.
    interleaved:  pairs are neighbours (2i, 2i + 1); otherwise (i, i + n_rot / 2).
    magnitude:    what is turned is also multiplied by this (YaRN).
    temperature:  (beta, length): and by 1 + beta ln(1 + floor(position / length)), for queries of long texts (Llama 4).
    of_queries:   what turns queries, where it is another.
    """

    frequencies: np.ndarray
    interleaved: bool
    magnitude: float = 1.0
    temperature: tuple[float, int] | None = None
    of_queries: Rotation | None = None

    def fill(self, positions: np.ndarray, table: np.ndarray) -> None:
        """Cosines and sines, with all that they are multiplied by, into table: float32 [n_positions, 2, n_rot / 2]."""
        angles = np.multiply.outer(positions, self.frequencies)
        np.cos(angles, out=table[:, 0], casting="same_kind")
        np.sin(angles, out=table[:, 1], casting="same_kind")
        if self.magnitude != 1:
            table *= np.float32(self.magnitude)
        if self.temperature is not None:
            beta, length = self.temperature
            table *= (1 + beta * np.log1p(positions // length)).astype(np.float32)[:, None, None]


@dataclass(eq=False, repr=False)
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
        # The transpose of a turn is the turn back; what it is multiplied by stays.
        b.add(self.x, b.graph.record(replace(self, x=grad, inverse=not self.inverse)))


def rope(x: Value, n_heads: int, rotation: Rotation, name: str = "") -> Value:
    return x.graph.record(Rope(x, n_heads, rotation), name)
