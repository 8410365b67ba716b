"""What all learners share that train a loaded model: passes over documents, losses, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgellm.engine.gradients import GradientPasses
from edgellm.formats.tensor import Tensor
from edgellm.graph.program import aligned
from edgellm.quants import FORMATS
from edgellm.train.documents import NOTHING, Documents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.arch import ModelGraphs
    from edgellm.engine import Model

Weigh: TypeAlias = "Callable[[NDArray[np.float32]], NDArray[np.float32]]"

DEFAULT_BATCH = 256  # tokens of a pass


class ModelLearner:
    """A model, some of whose weights are trained; see `Learner`. It has the model for itself until `close`.

    parameters:  float32, by name, which programs read where they are.
    gradients:   of the same shapes.
    derived, derived_gradients:  the same for what is made of parameters before each pass, where programs do not read
                 the parameters themselves.
    """

    def __init__(self, model: Model, n_batch: int = DEFAULT_BATCH) -> None:
        self.model = model
        self.n_batch = n_batch
        self.parameters: dict[str, NDArray[np.float32]] = {}
        self.gradients: dict[str, NDArray[np.float32]] = {}
        self.derived: dict[str, NDArray[np.float32]] = {}
        self.derived_gradients: dict[str, NDArray[np.float32]] = {}
        self._sums: dict[Tensor, NDArray[np.float32]] = {}
        self._resources = ExitStack()
        self._resources.enter_context(model._scheduler.alone())

    def train(self, name: str, array: NDArray[Any]) -> Tensor:
        """One more trained weight, copied, as programs read it."""
        self.add_parameter(name, array)
        return self._tensor(name, self.parameters[name], self.gradients[name])

    def add_parameter(self, name: str, array: NDArray[Any]) -> None:
        """One more trained weight that no program reads; see `derive`."""
        # On cache lines: kernels read it a good deal faster.
        own = aligned(array.size * 4).view(np.float32).reshape(array.shape)
        own[...] = array
        self.parameters[name], self.gradients[name] = own, np.zeros_like(own)

    def derive(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What `before_pass` makes of parameters, as programs read it."""
        self.derived[name], self.derived_gradients[name] = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        return self._tensor(name, self.derived[name], self.derived_gradients[name])

    def _tensor(self, name: str, array: NDArray[np.float32], gradient: NDArray[np.float32]) -> Tensor:
        tensor = Tensor(name, array.shape, FORMATS["F32"], array.view(np.uint8))
        self._sums[tensor] = gradient
        return tensor

    def prepare(
        self,
        graphs: ModelGraphs,
        recompute: bool = False,
        transposed: Mapping[Tensor, Tensor] | None = None,
        in_bf16: bool = False,
    ) -> None:
        """Make the programs, once all trained weights are known. The options are those of `GradientPasses`."""
        self._passes = GradientPasses(
            self.model._scheduler, graphs, self._sums, self.n_batch, recompute, transposed, in_bf16
        )
        self._resources.callback(self._passes.close)

    def begin_pass(self, step: int, index: int) -> None:
        """Nothing here is random."""

    def before_pass(self) -> None:
        """Make what is derived of the parameters as they are."""

    def after_gradients(self) -> None:
        """Add to the gradients of parameters what those of a pass are by what was derived."""

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        return _weighted(self._gradients(documents, scale), documents)

    def gradients_by(self, documents: Documents, weigh: Weigh) -> NDArray[np.float32]:
        """Add the gradient of the sum of weight * nll over all targets, weights being what `weigh` makes of the nlls.

        So goes the gradient of any loss that is a function of the nlls: weights are its derivatives by them.
        Returns the nlls.
        """
        return self._gradients(documents, 1.0, weigh)

    def loss(self, documents: Documents) -> tuple[float, float]:
        return _weighted(self.negative_log_likelihoods(documents), documents), documents.total_weight

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        self.before_pass()
        return self._passes.losses(documents)

    def _gradients(self, documents: Documents, scale: float, weigh: Weigh | None = None) -> NDArray[np.float32]:
        self.before_pass()
        losses = self._passes.gradients(documents, scale, weigh)
        self.after_gradients()
        for gradient in self.derived_gradients.values():
            gradient[...] = 0
        return losses

    def close(self) -> None:
        """Give the model back."""
        self._resources.close()


def _weighted(losses: NDArray[np.float32], documents: Documents) -> float:
    return float(np.dot(losses.astype(np.float64), documents.weights[documents.targets != NOTHING]))
