"""What models with several streams of hidden states do beside (Gemma 3n). They stand side by side in one row."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.graph.nodes.base import Node, Value


@dataclass(eq=False, repr=False)
class _Changed(Node):
    """x with something done to it."""

    x: Value

    @property
    def width(self) -> int:
        return self.x.width


@dataclass(eq=False, repr=False)
class AddMixed(_Changed):
    """Part i of x + the sum over j of (weights[i, j] + plus) * part j of y, for parts of n_cols.

    mixture:  weights [n_out * n_in], each token's own.
    """

    y: Value
    mixture: Value
    n_cols: int
    plus: float = 0.0


@dataclass(eq=False, repr=False)
class AddToColumns(_Changed):
    """x, with y added to the columns from `first` on, and to all next as many that there are."""

    y: Value
    first: int


@dataclass(eq=False, repr=False)
class MatchSize(_Changed):
    """x * rms(like) / sqrt(max(mean(x**2), least)), row by row."""

    like: Value
    least: float


@dataclass(eq=False, repr=False)
class KeepLarge(_Changed):
    """max(0, x - (mean + deviations * standard deviation)), row by row: for a normal row, a share of it."""

    deviations: float


def add_mixed(x: Value, y: Value, weights: Value, n_cols: int, plus: float = 0.0) -> Value:
    return x.graph.record(AddMixed(x, y, weights, n_cols, plus))


def add_to_columns(x: Value, y: Value, first: int) -> Value:
    return x.graph.record(AddToColumns(x, y, first))


def match_size(x: Value, like: Value, least: float) -> Value:
    return x.graph.record(MatchSize(x, like, least))


def keep_large(x: Value, deviations: float) -> Value:
    return x.graph.record(KeepLarge(x, deviations))
