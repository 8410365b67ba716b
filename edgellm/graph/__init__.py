"""A model as a program: nodes are recorded once, lowered to ops, planned into one arena, run by a team of threads."""

from __future__ import annotations

from edgellm.graph.batch import AddressedArray, Batch, Piece
from edgellm.graph.lowering import Lowered, Target, lower
from edgellm.graph.nodes import Graph, Value
from edgellm.graph.program import Program
from edgellm.graph.team import Team
from edgellm.graph.tuning import Tuning

__all__ = [
    "AddressedArray",
    "Batch",
    "Graph",
    "Lowered",
    "Piece",
    "Program",
    "Target",
    "Team",
    "Tuning",
    "Value",
    "lower",
]
