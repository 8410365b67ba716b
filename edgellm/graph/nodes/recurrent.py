"""Layers that keep a state of a text: what a token is given of those before it is what the state has kept of them."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError
from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes.base import Node, Value


@dataclass(eq=False, repr=False)
class CausalConv(Node):
    """Each column convolved over a token and those before it, with taps of its own: weight [width, n_taps]."""

    x: Value
    weight: Tensor

    @property
    def n_taps(self) -> int:
        return self.weight.shape[1]

    @property
    def width(self) -> int:
        return self.x.width

    @property
    def n_state(self) -> int:
        return (self.n_taps - 1) * self.width


@dataclass(eq=False, repr=False)
class DeltaRule(Node):
    """The gated delta rule (Yang et al., 2024), with a matrix for every head, from keys to values.

    For each token, the matrix becomes kept * S, then S + k (beta (v - k S)), and the head gives q S / sqrt(key_dim).
    Queries and keys are made to have length 1. kept is e**(rate * softplus(decay + bias)), beta a logistic.

    x:            queries and keys of n_key_heads heads, then values of n_heads; head h of values goes with head
                  h % n_key_heads of keys, or those of one are neighbours (is_grouped).
    decay, beta:  [n_heads], logits. rate, bias: [n_heads]; rates are below 0.
    """

    x: Value
    decay: Value
    beta: Value
    rate: Tensor
    bias: Tensor
    n_key_heads: int
    key_dim: int
    epsilon: float
    is_grouped: bool = False

    @property
    def n_heads(self) -> int:
        return self.decay.width

    @property
    def width(self) -> int:
        return self.x.width - 2 * self.n_key_heads * self.key_dim

    @property
    def value_dim(self) -> int:
        return self.width // self.n_heads

    @property
    def n_state(self) -> int:
        return self.key_dim * self.width


def causal_conv(x: Value, weight: Tensor, name: str = "") -> Value:
    return x.graph.record(CausalConv(x, weight), name)


def delta_rule(
    x: Value, decay: Value, beta: Value, rate: Tensor, bias: Tensor, n_key_heads: int, key_dim: int,
    epsilon: float, name: str = "", is_grouped: bool = False,
) -> Value:  # fmt: skip
    """Raises UsageError for heads that do not fit."""
    node = DeltaRule(x, decay, beta, rate, bias, n_key_heads, key_dim, epsilon, is_grouped)
    if node.width <= 0 or node.width % node.n_heads or node.n_heads % n_key_heads:
        raise UsageError(
            f"{node.n_heads} heads of values, {node.width} wide, do not fit {n_key_heads} heads of {key_dim} dimensions"
        )
    return x.graph.record(node, name)
