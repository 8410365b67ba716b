"""The lengths of the rows of W + scale * B A, while B and A are trained (DoRA; Liu et al., 2024).

Their squares are |W|^2 + 2 scale (W A^T, B) + scale^2 |B A|^2, row by row. The first part is found once. The second is
W on the few rows of A, as a program; so no weight is dequantized anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Value, lower
from edgellm.graph.nodes import linear
from edgellm.graph.nodes.gradients import ColumnProductSum
from edgellm.graph.program import RowMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.engine.runner import Runner

PIECE_WEIGHTS = 1 << 20  # that are dequantized at a time


@dataclass(frozen=True, eq=False)
class Weighed:
    """A weight and what is added to it.

    weight:  W [n_out, n_in] of any format.
    a, b:    float32, A [rank, n_in], and B transposed [rank, n_out].
    """

    weight: Tensor
    a: NDArray[np.float32]
    b: NDArray[np.float32]


class RowLengths:
    """Of several weights with the same rank, by a model's own way to compute. Nobody else may use its team."""

    def __init__(self, runner: Runner, parts: Sequence[Weighed], scale: float) -> None:
        self._parts, self._scale = parts, scale
        with ThreadPoolExecutor(runner.n_threads) as pool:
            self._own = list(pool.map(lambda part: _squares(part.weight), parts))
        self._rank = len(parts[0].a)
        graph = Graph()
        self._between = [np.empty(part.weight.shape[0], np.float32) for part in parts]
        self._memory: list[tuple[RowMemory, RowMemory]] = []
        inputs: dict[Value, int] = {}
        for part, between in zip(parts, self._between, strict=True):
            memory = tuple(RowMemory(x.shape[1], self._rank) for x in (part.a, part.b))
            a, b = (graph.input(rows.width) for rows in memory)
            inputs |= {a: memory[0].address, b: memory[1].address}
            # Tokens of this program are the rows of A and B.
            graph.output(graph.record(ColumnProductSum(linear(a, part.weight, sensitive=True), b, between)))
            self._memory.append((memory[0], memory[1]))
        lowered = lower(graph, runner.target)
        runner.store.load(lowered.kernels)
        self._program = Program(lowered, runner.store, Batch(self._rank, lowered), runner.team, inputs=inputs)

    @property
    def own(self) -> list[NDArray[np.float64]]:
        """The lengths of the rows of W alone, of each weight."""
        return [np.sqrt(squares) for squares in self._own]

    def now(self) -> list[NDArray[np.float64]]:
        """float64 [n_out] of each weight, for A and B as they are."""
        for part, between, (a, b) in zip(self._parts, self._between, self._memory, strict=True):
            a.fill(part.a)
            b.fill(part.b)
            between[:] = 0
        self._program.run({"tokens": self._rank})
        return [self._lengths(*found) for found in zip(self._parts, self._own, self._between, strict=True)]

    def _lengths(self, part: Weighed, own: NDArray[np.float64], between: NDArray[np.float32]) -> NDArray[np.float64]:
        products = part.a.astype(np.float64) @ part.a.T
        added = (products @ part.b * part.b).sum(0)
        squares = own + 2 * self._scale * between.astype(np.float64) + self._scale**2 * added
        return np.sqrt(np.maximum(0, squares))


def _squares(weight: Tensor) -> NDArray[np.float64]:
    """The squared lengths of a weight's rows."""
    n_out, n_in = weight.shape
    squares, step = np.empty(n_out), max(1, PIECE_WEIGHTS // n_in)
    for start in range(0, n_out, step):
        rows = slice(start, start + step)
        w = weight.format.dequantize(weight.raw[rows]).reshape(-1, n_in)
        squares[rows] = np.einsum("ij,ij->i", w, w, dtype=np.float64)
    return squares
