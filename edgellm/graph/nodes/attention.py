"""Attention: every token takes a weighted mean of values, by how well its query meets their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import UnsupportedError, UsageError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value

if TYPE_CHECKING:
    from edgellm.graph.backward import Backward


@dataclass(eq=False, repr=False)
class AttentionSpec:
    """What distinguishes one kind of attention from another.

    scale:     what the products of queries and keys are multiplied by.
    causal:    a token sees itself and those before it; otherwise all of its text.
    window:    positions a token looks back over, itself included, and without causality as far ahead; None is no
               limit.
    soft_cap:  scores s become soft_cap * tanh(s / soft_cap) (Gemma 2); None leaves them as they are.
    sinks:     [n_heads], a score for each head that takes its share of the softmax and gives nothing (gpt-oss).
    alibi:     float32 [n_heads], what a head's scores lose for each position of distance (Press et al., 2021).
    """

    scale: float
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None
    alibi: np.ndarray | None = None


@dataclass(eq=False, repr=False)
class KeysValues(Node):
    """Keys and values of new tokens, kept behind those of the tokens before them in the sequence's cache.

    The value that it makes stands for the whole cache of a layer. A layer that shares another's cache attends to the
    same value; a layer without one attends to `keys` and `values` of the batch itself (`cached` False).
    """

    keys: Value
    values: Value
    n_heads: int
    cached: bool = True
    copy_of: KeysValues | None = None  # the node whose layer of the cache this one fills again, with the same

    def marks_of_copy(self) -> dict[str, Any]:
        return {"copy_of": self.copy_of or self}

    @property
    def key_dim(self) -> int:
        return self.keys.width // self.n_heads

    @property
    def value_dim(self) -> int:
        return self.values.width // self.n_heads

    @property
    def width(self) -> int:
        return 0


@dataclass(eq=False, repr=False)
class Attention(Node):
    """softmax(scale * q k^T) v for each of n_heads heads, which share keys and values in equal groups."""

    q: Value
    kv: Value
    n_heads: int
    spec: AttentionSpec

    @property
    def source(self) -> KeysValues:
        """The keys and values that it looks at."""
        assert isinstance(self.kv.node, KeysValues)
        return self.kv.node

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return () if self.spec.sinks is None else (self.spec.sinks,)

    @property
    def width(self) -> int:
        return self.n_heads * self.source.value_dim

    def backward(self, b: Backward, grad: Value) -> None:
        from edgellm.graph.nodes.gradients import AttentionBackward  # which training alone needs

        if self.spec.sinks is not None and b.trains(self.spec.sinks):
            raise UnsupportedError(f"training sinks is not built yet ({self.spec.sinks.name}); freeze them")
        source = self.source
        inputs = (self.q, source.keys, source.values)
        q, k, v = map(b.value, inputs)
        node = AttentionBackward(q, k, v, grad, self.n_heads, source.n_heads, self.spec)
        b.add_needed(inputs, b.graph.record_all(node))


def keys_values(keys: Value, values: Value, n_heads: int, cached: bool = True) -> Value:
    return keys.graph.record(KeysValues(keys, values, n_heads, cached))


def attention(q: Value, kv: Value, n_heads: int, spec: AttentionSpec, name: str = "") -> Value:
    """kv: what `keys_values` made, in this layer or in another. Raises UsageError for heads that do not fit."""
    node = kv.node
    if not isinstance(node, KeysValues):
        raise UsageError("attention looks at what keys_values made")
    if n_heads % node.n_heads or q.width // n_heads != node.key_dim:
        raise UsageError(
            f"{n_heads} heads of queries, {q.width} wide, do not fit {node.n_heads} heads of {node.key_dim} dimensions"
        )
    return q.graph.record(Attention(q, kv, n_heads, spec), name)
