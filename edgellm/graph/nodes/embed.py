"""Embeddings of tokens and of positions: the first steps of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.dataclass import dataclass
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Graph, Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class Embed(Node):
    """Row `id` of weight [n_vocab, n_embd] for each token id of the batch, times `scale`."""

    weight: Tensor
    scale: float = 1.0

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import EmbedSum  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(EmbedSum(grad, b.sums[self.weight], self.scale))


@dataclass(eq=False, repr=False)
class EmbedPosition(Node):
    """Row `position` of weight [n_positions, n_embd] for each token of the batch: learnt positions (GPT-2)."""

    weight: Tensor

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import EmbedSum  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(EmbedSum(grad, b.sums[self.weight], by_position=True))


def embed_position(g: Graph, weight: Tensor, name: str = "") -> Value:
    return g.record(EmbedPosition(weight), name)


@dataclass(eq=False, repr=False)
class AddSegment(Node):
    """x + the row of table [2, width] for each token that says which part of a pair of texts it belongs to."""

    x: Value
    table: Tensor

    @property
    def width(self) -> int:
        return self.x.width


def add_segment(x: Value, table: Tensor, name: str = "") -> Value:
    return x.graph.record(AddSegment(x, table), name)


def embed(g: Graph, weight: Tensor, scale: float = 1.0, name: str = "") -> Value:
    return g.record(Embed(weight, scale), name)
