"""The last norm of a model, in front of its head, for a few rows of hidden states: what heads of other kinds read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import UsageError
from edgellm.graph.nodes import RMSNorm
from edgellm.train.preference.numbers import Floats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.engine import Model


@dataclass(frozen=True)
class FinalNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight. weight: float64 [n_embd]."""

    weight: Floats
    epsilon: float

    @classmethod
    def of(cls, model: Model) -> FinalNorm:
        """That of a model. Raises UsageError for one whose head begins otherwise."""
        nodes = model._runner.graphs.head.nodes
        found = next((node for node in nodes if isinstance(node, RMSNorm)), None)
        if found is None or found.n_heads != 1:
            raise UsageError(
                f"{model.path.name} has no norm before its logits, which a head of rewards or values reads"
            )
        return cls(found.weight.dequantize().astype(np.float64).reshape(-1), found.epsilon)

    def __call__(self, x: NDArray[np.float32]) -> Floats:
        """float32 [n, n_embd] -> float64 [n, n_embd]"""
        return np.asarray(x.astype(np.float64) * self._factor(x) * self.weight)

    def backward(self, x: NDArray[np.float32], by_output: Floats) -> Floats:
        """Derivatives by x, float64 [n, n_embd], from those by what came of it."""
        factor, scaled = self._factor(x), by_output * self.weight
        inner = (scaled * x).mean(axis=1, keepdims=True)
        return np.asarray(factor * (scaled - x * factor**2 * inner))

    def _factor(self, x: NDArray[np.float32]) -> Floats:
        mean = np.square(x, dtype=np.float64).mean(axis=1, keepdims=True)
        return np.asarray(1 / np.sqrt(mean + self.epsilon))
