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
    magnitude:    what is turned is also multiplied by this (YaRN).
    temperature:  (beta, length): and by 1 + beta ln(1 + floor(position / length)), for queries of long texts (Llama 4).
    of_queries:   what turns queries, where it is another.
    """

    frequencies: np.ndarray
    interleaved: bool
    magnitude: float = 1.0
    temperature: tuple[float, int] | None = None
    of_queries: Rotation | None = None

    def table(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines, float64 [n_tokens, n_rot / 2] each, with all that they are multiplied by."""
        angles = np.multiply.outer(positions, self.frequencies)
        size = np.full(len(positions), self.magnitude)
        if self.temperature is not None:
            beta, length = self.temperature
            size *= 1 + beta * np.log1p(positions // length)
        return np.cos(angles) * size[:, None], np.sin(angles) * size[:, None]


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
        # The transpose of a turn is the turn back; what it is multiplied by stays.
        b.add(self.x, b.graph.record(replace(self, x=grad, inverse=not self.inverse)))


def rope(x: Value, n_heads: int, rotation: Rotation, name: str = "") -> Value:
    return x.graph.record(Rope(x, n_heads, rotation), name)
