"""What all learners share that train a loaded model: passes over documents, losses, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgellm.engine.gradients import GradientPasses, Look
from edgellm.formats.tensor import Tensor
from edgellm.graph.program import aligned
from edgellm.train.documents import NOTHING, Documents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.arch import ModelGraphs
    from edgellm.engine import Model
    from edgellm.graph.nodes.expert_gradients import Balance

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
        tensor = Tensor.of(name, array)
        self._sums[tensor] = gradient
        return tensor

    def prepare(
        self,
        graphs: ModelGraphs,
        recompute: bool = False,
        transposed: Mapping[Tensor, Tensor] | None = None,
        in_bf16: bool = False,
        n_virtual: int = 0,
        n_more: int = 0,
        balance: Balance | None = None,
    ) -> None:
        """Make the programs, once all trained weights are known. The options are those of `GradientPasses`.

        n_more:  tokens for which passes have room beside those of documents.
        """
        self._passes = GradientPasses(
            self.model._runner, graphs, self._sums, self.n_batch + n_more, recompute, transposed, in_bf16, n_virtual,
            balance,
        )  # fmt: skip
        self._resources.callback(self._passes.close)

    def begin_pass(self, step: int, index: int) -> None:
        """Nothing here is random."""

    def before_pass(self) -> None:
        """Make what is derived of the parameters as they are."""

    def after_gradients(self) -> None:
        """Add to the gradients of parameters what those of a pass are by what was derived."""

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        return _weighted(self._gradients(documents, scale), documents)

    def gradients_by(self, documents: Documents, weigh: Weigh, look: Look | None = None) -> NDArray[np.float32]:
        """Add the gradient of the sum of weight * nll over all targets, weights being what `weigh` makes of the nlls.

        So goes the gradient of any loss that is a function of the nlls: weights are its derivatives by them.
        look is shown the hidden states that the nlls are made from, float32 [n_targets, n_embd], before the last norm.
        Returns the nlls.
        """
        return self._gradients(documents, 1.0, weigh, look)

    def loss(self, documents: Documents) -> tuple[float, float]:
        return _weighted(self.negative_log_likelihoods(documents), documents), documents.total_weight

    def negative_log_likelihoods(self, documents: Documents, look: Look | None = None) -> NDArray[np.float32]:
        self.before_pass()
        return self.run_losses(documents, look)

    def hidden(self, documents: Documents) -> NDArray[np.float32]:
        """The hidden states of all tokens, float32 [n, n_embd], before the last norm."""
        self.before_pass()
        return self.run_hidden(documents)

    def gradients_by_hidden(self, documents: Documents, gradient_of: Weigh) -> None:
        """Add the gradient of what depends on hidden states alone; `gradient_of` makes the derivatives by them."""
        self.before_pass()
        self.run_gradients_by_hidden(documents, gradient_of)
        self._end_gradients()

    def figures(self) -> dict[str, float]:
        """The loss says it all."""
        return {}

    def _gradients(
        self, documents: Documents, scale: float, weigh: Weigh | None = None, look: Look | None = None
    ) -> NDArray[np.float32]:
        self.before_pass()
        losses = self.run_gradients(documents, scale, weigh, look)
        self._end_gradients()
        return losses

    def _end_gradients(self) -> None:
        self.after_gradients()
        for gradient in self.derived_gradients.values():
            gradient[...] = 0

    # --- passes, for kinds of learners that need more than one ------------------------------------------------

    def run_losses(self, documents: Documents, look: Look | None = None) -> NDArray[np.float32]:
        """The nlls of all targets."""
        return self._passes.losses(documents, look)

    def run_gradients(
        self, documents: Documents, scale: float, weigh: Weigh | None = None, look: Look | None = None
    ) -> NDArray[np.float32]:
        """The same; adds to the gradients of what programs read."""
        return self._passes.gradients(documents, scale, weigh, look)

    def run_hidden(self, documents: Documents) -> NDArray[np.float32]:
        """The hidden states of all tokens."""
        return self._passes.hidden(documents)

    def run_gradients_by_hidden(self, documents: Documents, gradient_of: Weigh) -> None:
        """Adds the gradients of what depends on hidden states alone."""
        self._passes.gradients_of_hidden(documents, gradient_of)

    def close(self) -> None:
        """Give the model back."""
        self._resources.close()


def _weighted(losses: NDArray[np.float32], documents: Documents) -> float:
    return float(np.dot(losses.astype(np.float64), documents.weights[documents.targets != NOTHING]))
