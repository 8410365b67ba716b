"""Embeddings: of tokens, the first step of a language model, and of what else is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Graph, Node, Value

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
        from edgellm.graph.nodes.gradients import EmbedSum  # which training alone needs

        if b.trains(self.weight):
            b.add_sum(EmbedSum(grad, b.sums[self.weight], self.scale))


@dataclass(frozen=True, eq=False)
class AddEmbedding(Node):
    """x + a row of table [n_rows, width] for each token.

    of:  what says which: "positions", the token's place in its text; "segments", the part of a pair of texts that it
         belongs to, 0 or 1.
    """

    x: Value
    table: Tensor
    of: Literal["positions", "segments"]

    @property
    def width(self) -> int:
        return self.x.width


def add_embedding(x: Value, table: Tensor, of: Literal["positions", "segments"], name: str = "") -> Value:
    return x.graph.record(AddEmbedding(x, table, of), name)


def embed(g: Graph, weight: Tensor, scale: float = 1.0, name: str = "") -> Value:
    return g.record(Embed(weight, scale), name)
