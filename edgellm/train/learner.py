"""What a training run needs of a model: its trainable weights, and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgellm.train.documents import Documents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Learner(Protocol):
    """Weights that can be trained, and what they do to a loss.

    parameters:  float32, by name, changed in place and never replaced.
    gradients:   of the same names and shapes; `loss_and_gradients` adds to them.
    n_batch:     most tokens of one pass.
    """

    parameters: dict[str, NDArray[np.float32]]
    gradients: dict[str, NDArray[np.float32]]
    n_batch: int

    def begin_pass(self, step: int, index: int) -> None:
        """Say which pass of which step comes next: random choices such as dropout depend on that and the seed alone.

        So a run that is resumed makes the choices that it would have made, and nothing random is to be saved.
        """

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        """The sum of weight * nll over the targets; `scale` times its gradient is added to `gradients`."""

    def loss(self, documents: Documents) -> tuple[float, float]:
        """The sum of weight * nll, and the sum of the weights; no gradient, and nothing left out at random."""

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        """nll of every target, float32 [targets], in order."""
