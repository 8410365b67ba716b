"""Where in a model's graph an adapter can stand: beside which steps, and what of their weights it may be instead of.

A weight may be used by steps that cannot be computed twice for the rows of a batch, or be no weight of a step at all.
An adapter that changes such a weight is refused when it is loaded; merging, which writes weights, can do it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from edgellm.errors import UnsupportedError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import LowRank as Matrices
from edgellm.formats.tensor import Tensor
from edgellm.graph.adapters import EMBEDDING, Instead, names_of
from edgellm.graph.nodes import (
    AddBias,
    AddSegment,
    Embed,
    EmbedPosition,
    Graph,
    LayerNorm,
    Linear,
    Node,
    RMSNorm,
)
from edgellm.graph.nodes.experts import AddExpertBias, ExpertLinear
from edgellm.graph.nodes.low_rank import MultiplyColumns

# Steps of which each row is made by itself, once with the model's weights and once with others: not those that choose
# experts (two values, of which one follows from the other), that keep a state, or that look at the cache.
_WITH_WHOLES = (
    AddBias, AddExpertBias, AddSegment, Embed, EmbedPosition, ExpertLinear, LayerNorm, Linear, MultiplyColumns, RMSNorm,
)  # fmt: skip


def wholes_of(replaced: Mapping[str, Tensor], table: str) -> dict[str, Instead]:
    """What stands in place of the model's weights, by their names."""
    return {name: Instead(x, table, replaced.get(_other_of(name))) for name, x in replaced.items()}


def check_places(adapter: Adapter, graphs: Collection[Graph]) -> None:
    """Raise UnsupportedError for a weight that an adapter changes, where no step of the model can be computed so."""
    users: dict[str, list[Node]] = defaultdict(list)
    for graph in graphs:
        for node in graph.nodes:
            for name in names_of(graph, node):
                users[name].append(node)
    for name, change in adapter.weights.items():
        if not users[name] or not all(_has_beside(node, change) for node in users[name]):
            raise _nowhere(adapter, name, "small matrices beside")
    for name, x in adapter.replaced.items():
        if not users[name] or not all(isinstance(node, _WITH_WHOLES) and _has(node, x.shape) for node in users[name]):
            raise _nowhere(adapter, name, "another weight in place of")


def _has_beside(node: Node, change: Matrices) -> bool:
    is_right = node.weights[0].name == EMBEDDING if isinstance(node, Embed) else isinstance(node, Linear | ExpertLinear)
    return is_right and _has(node, change.shape)


def _has(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether a step uses a weight as a whole, rather than a part of it."""
    return any(weight.shape == shape for weight in node.weights)


def _nowhere(adapter: Adapter, name: str, what: str) -> UnsupportedError:
    whose = f"the adapter {adapter.name!r:.60}" if adapter.name else "the adapter"
    return UnsupportedError(
        f"{whose} has {what} {name!r:.120}, which edgellm cannot change while this model runs; merge it into the model "
        "(edgellm merge), and run that"
    )


def _other_of(name: str) -> str:
    """The bias that goes with a weight, and the other way round."""
    module, _, kind = name.rpartition(".")
    return f"{module}.{'weight' if kind == 'bias' else 'bias'}"
