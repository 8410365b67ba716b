"""Token embeddings: the first step of a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Graph, Node, Value
from edgellm.graph.nodes.gradients import EmbedSum

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(frozen=True, eq=False)
class Embed(Node):
    """Row `id` of weight [n_vocab, n_embd] for each token id of the batch, times `scale`."""

    weight: Tensor
    scale: float = 1.0

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def backward(self, b: Backward, grad: Value) -> None:
        if b.trains(self.weight):
            b.add_sum(EmbedSum(grad, b.sums[self.weight], self.scale))


def embed(g: Graph, weight: Tensor, scale: float = 1.0, name: str = "") -> Value:
    return g.record(Embed(weight, scale), name)
