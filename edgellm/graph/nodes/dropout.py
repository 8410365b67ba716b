"""Dropout (Srivastava et al., 2014): numbers are left out at random while a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Chance:
    """What a `Dropout` leaves out.

    p:      the share, from 0 up to, but not including, 1.
    state:  int64 [2]: a seed, and whether anything is left out now (0: nothing). Read in every run, so who trains
            writes another seed before each pass; a forward pass and its backward pass have the same.
    """

    p: float
    state: np.ndarray


@dataclass(eq=False, repr=False)
class Dropout(Node):
    """x / (1 - p), or 0 with probability p, by the row's place in the batch, the column and the seed."""

    x: Value
    chance: Chance

    @property
    def width(self) -> int:
        return self.x.width

    def backward(self, b: Backward, grad: Value) -> None:
        b.add(self.x, b.graph.record(replace(self, x=grad)))


def dropout(x: Value, chance: Chance) -> Value:
    return x.graph.record(Dropout(x, chance))
