"""The weights that tokens are multiplied by: which they are, and what most of them are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import Graph, Linear, Node
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

NARROW_COLS = 1024
LEAST_SHARE = 0.25  # of all bytes


class Kind(NamedTuple):
    """What decides which settings are quickest for a linear layer (see `graph.tuner`).

    format:     of its weights.
    is_narrow:  whether a row has at most NARROW_COLS columns, so that what is done once for each row counts.
    n_planes:   in which its inputs come as int8: two where they are rounded more finely, as those of the head are.
    """

    format: BlockFormat
    is_narrow: bool = False
    n_planes: int = 1

    def __str__(self) -> str:
        return f"{self.format}{'.narrow' if self.is_narrow else ''}{'.planes' if self.n_planes == 2 else ''}"


def most_common_kind(graphs: Iterable[Graph]) -> Kind:
    """The kind that most bytes of a model's weights have; the speed of decode is mostly that of its kernel.

    Embeddings that are only looked up do not count. Floats lie in one way alone: where LEAST_SHARE is in blocks, it is
    these that have settings to find.
    """
    n_bytes: Counter[Kind] = Counter()
    for graph in graphs:
        for node in graph.nodes:
            if (weight := multiplied(node)) is not None:
                is_fine = getattr(node, "sensitive", False) and not isinstance(weight.format, FloatFormat)
                n_bytes[Kind(weight.format, weight.shape[-1] <= NARROW_COLS, 2 if is_fine else 1)] += weight.n_bytes
    in_blocks = {kind: n for kind, n in n_bytes.items() if not isinstance(kind.format, FloatFormat)}
    some = in_blocks if sum(in_blocks.values()) > LEAST_SHARE * n_bytes.total() else n_bytes
    return max(some, key=lambda kind: n_bytes[kind], default=Kind(FORMATS["F32"]))


def multiplied(node: Node) -> Tensor | None:
    """The matrix that a node multiplies tokens by, or the stack of those of experts; None of other nodes."""
    weight = getattr(node, "weight", None)
    if isinstance(node, Linear):
        return node.weight if len(node.weight.shape) == 2 else None
    # Only experts have stacks of matrices. Most models have none, and their starts import nothing of experts.
    return weight if isinstance(weight, Tensor) and len(weight.shape) == 3 else None
