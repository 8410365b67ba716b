"""Lowering: from nodes, which say what is computed, to ops, which say how.

Every kind of node has a rule that adds its ops, in a file for each sort. What a graph leaves open
is decided here, for one way to compute (`Target`): kernels, rounded inputs or not, what happens in place, how large a
chunk is, where heads are padded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.formats.tensor import Tensor
from edgellm.graph.cache_memory import CacheLayer
from edgellm.graph.fusion import FUSED, FUSED_SMALL, fused
from edgellm.graph.lowering import attention, linear, rows, scaled
from edgellm.graph.lowering.attention import ATTENTION_ROWS, MAX_SPLITS
from edgellm.graph.lowering.base import (
    DOCUMENTS,
    POSITIONS,
    RULES,
    SEGMENTS,
    STATE_TASKS,
    STATE_TEXTS,
    TARGET_WEIGHTS,
    TEXT_TASKS,
    TOKEN_IDS,
    Lowering,
    Rule,
    Target,
    adapter_table,
    full_table,
    merges_table,
    rotation_table,
    slots_table,
    states_table,
    tasks_table,
)
from edgellm.graph.nodes import Graph, Node, Rotation, Value
from edgellm.graph.ops import Op, Rows
from edgellm.kernels.registry import Kernel

__all__ = [
    "ATTENTION_ROWS",
    "DOCUMENTS",
    "MAX_SPLITS",
    "POSITIONS",
    "SEGMENTS",
    "STATE_TASKS",
    "STATE_TEXTS",
    "TARGET_WEIGHTS",
    "TEXT_TASKS",
    "TOKEN_IDS",
    "ExpertSums",
    "Lowered",
    "Target",
    "adapter_table",
    "full_table",
    "lower",
    "merges_table",
    "rotation_table",
    "slots_table",
    "states_table",
    "tasks_table",
]

ExpertSums = Mapping[Node, tuple[np.ndarray, np.ndarray]]

_RULE_FILES = (attention, linear, rows, scaled)  # importing them fills RULES


@dataclass(eq=False)
class Lowered:
    """Ops that compute some values of a graph.

    ops:           in the order in which they must seem to happen; steps: the same, neighbouring row ops fused.
    rows:          where the values are that come from outside, and those that can be read after a run.
    outside:       of these, the former: somebody gives their memory.
    rotations, windows, group_size:  what a batch prepares: angles; attention tasks for each distance that is looked
                   back (None is no limit), and for so many query heads that share a key head, at most.
    kept:          the different windows that layers of the cache keep.
    cache_layers:  what the cache holds of every token, layer by layer.
    state_bytes:   what layers that keep a state have of a text, each.
    constants:     small weights as float32, which the file holds in another format.
    """

    target: Target
    ops: list[Op]
    rows: dict[Value, Rows]
    outside: list[Value]
    rotations: list[Rotation]
    windows: list[int | None]
    kept: list[int | None]
    group_size: int
    cache_layers: list[CacheLayer]
    state_bytes: list[int]
    constants: dict[Tensor, np.ndarray]

    @cached_property
    def steps(self) -> list[Op]:
        return fused(self.ops)

    @property
    def kernels(self) -> list[Kernel]:
        """What the ops call."""
        return [
            FUSED,
            FUSED_SMALL,
            *(kernel for op in self.ops for kernel in (op.kernel, op.small_kernel, op.asking) if kernel),
        ]


def lower(
    graph: Graph,
    target: Target,
    taps: Iterable[Value] = (),
    given: Iterable[Value] = (),
    square_sums: Mapping[Value, np.ndarray] | None = None,
    expert_sums: ExpertSums | None = None,
    like: Graph | None = None,
    transposed: Mapping[Tensor, Tensor] | None = None,
    longest: int = 0,
) -> Lowered:
    """The ops that compute a graph's outputs.

    taps:         other values that can be read after a run.
    given:        values that are not computed: somebody fills their rows, as those of the graph's inputs.
    square_sums:  values whose squares are added up in every run, float64 [stride] each, column by column.
    expert_sums:  the same of what each expert is given, by the linear that reads it: sums, float64 [n_experts, n_in],
                  and how many tokens each had, float64 [n_experts].
    like:         the graph whose cache and batch serve, for its backward pass; by default, this one.
    transposed:   copies of weights [n_in, n_out] for `LinearTransposed`, in a format that multiplies as fast as
                  `Linear` does.
    longest:      tokens of the longest text, for a backward pass, and where texts attend to themselves without a cache.

    Raises UnsupportedError naming what no kernel can do yet.
    """
    square_sums, expert_sums = square_sums or {}, expert_sums or {}
    outside = [*graph.inputs, *given]
    kept = [*graph.outputs, *taps]
    read = [*kept, *square_sums, *(value for node in expert_sums for value in node.inputs)]
    nodes = graph.needed(read, outside)
    low = Lowering(graph, target, nodes, [*outside, *read], like, transposed, longest)
    for value in outside:
        low.new_rows(value)
        if value in square_sums:
            low.add_squares(value, square_sums[value])
    for node in nodes:
        rule_of(node)(low, node)
        value = graph.made_by(node)
        if value in square_sums:
            low.add_squares(value, square_sums[value])
        if node in expert_sums:
            from edgellm.graph.lowering.experts import add_expert_squares

            add_expert_squares(low, node, *expert_sums[node])
    return Lowered(
        target,
        low.ops,
        {value: low.rows(value) for value in [*kept, *outside] if value.width},
        outside,
        low.rotations,
        low.windows,
        low.kept,
        low.group_size,
        low.cache_layers,
        low.state_bytes,
        low.constants,
    )


def rule_of(node: Node) -> Rule[Any]:
    """What lowers a node. Rules that few models need, and those of backward passes, are imported when they are."""
    for name in ("recurrent", "streams", "texts", "experts", "heads", "low_rank", "gradients", "expert_gradients"):
        if type(node) not in RULES:
            importlib.import_module(f"edgellm.graph.lowering.{name}")
    return RULES[type(node)]
