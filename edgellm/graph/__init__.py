"""A model as a program: ops are recorded once, planned into one arena, and run by a team of threads."""

from edgellm.graph.builder import Graph, Value
from edgellm.graph.program import Batch, Program
from edgellm.graph.team import Team
from edgellm.graph.tuning import Tuning

__all__ = ["Batch", "Graph", "Program", "Team", "Tuning", "Value"]
