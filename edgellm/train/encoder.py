"""A small network that makes learnt tokens while they are trained: they move together then, which steadies training
(Li and Liang, 2021; Liu et al., 2021). Only what it makes is kept in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.train.model_learner import ModelLearner

Arrays = dict[str, "NDArray[np.float32]"]


class Encoder:
    """An embedding [n, widths[0]] and linear layers with biases, with an activation between them, as PEFT has them.

    Its parameters are a learner's: `encoder.embedding`, `encoder.0.weight` [n_out, n_in], `encoder.0.bias`, and so on.
    """

    def __init__(
        self,
        learner: ModelLearner,
        n: int,
        widths: Sequence[int],
        activation: Literal["relu", "tanh"],
        random: np.random.Generator,
    ) -> None:
        self._parameters, self._gradients, self._activation = learner.parameters, learner.gradients, activation
        self._layers = range(len(widths) - 1)
        learner.add_parameter("encoder.embedding", random.normal(size=(n, widths[0])))
        for layer, (n_in, n_out) in enumerate(pairwise(widths)):
            bound = 1 / np.sqrt(n_in)
            learner.add_parameter(f"encoder.{layer}.weight", random.uniform(-bound, bound, (n_out, n_in)))
            learner.add_parameter(f"encoder.{layer}.bias", random.uniform(-bound, bound, n_out))
        self._inputs: list[NDArray[np.float32]] = []

    def forward(self) -> NDArray[np.float32]:
        """float32 [n, widths[-1]]; `backward` goes by the last one."""
        x, self._inputs = self._parameters["encoder.embedding"], []
        for layer in self._layers:
            self._inputs.append(x)
            x = x @ self._parameters[f"encoder.{layer}.weight"].T + self._parameters[f"encoder.{layer}.bias"]
            if layer != self._layers[-1]:
                x = np.maximum(x, 0) if self._activation == "relu" else np.tanh(x)
        return x

    def backward(self, gradient: NDArray[np.float32]) -> None:
        """Add to the gradients of its parameters, given that of what it made."""
        for layer in reversed(self._layers):
            x = self._inputs[layer]
            self._gradients[f"encoder.{layer}.weight"] += gradient.T @ x
            self._gradients[f"encoder.{layer}.bias"] += gradient.sum(0)
            gradient = gradient @ self._parameters[f"encoder.{layer}.weight"]
            if layer:
                gradient = gradient * (x > 0 if self._activation == "relu" else 1 - x * x)
        self._gradients["encoder.embedding"] += gradient
