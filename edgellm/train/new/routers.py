"""Training of a new model whose layers have experts: the loss beside that of the text, which keeps all of them in use.

Without it, experts that are good at first are given more tokens, learn more, and the others are left out (Shazeer et
al., 2017). The one here is that of Fedus et al. (2021) for each layer's router, and the mean of all layers; see
`graph.nodes.expert_gradients.Balance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.graph.nodes.expert_gradients import Balance
from edgellm.train.full import FullLearner

if TYPE_CHECKING:
    from edgellm.engine import Model
    from edgellm.train.documents import Documents


class RouterLearner(FullLearner):
    """All weights of a model with experts.

    A pass is judged by itself, and counts for as much as it has of the tokens of an update.
    """

    def __init__(self, model: Model, coefficient: float, **options: Any) -> None:
        """coefficient: see `config.RouterSettings`. options: those of `FullLearner`."""
        self._coefficient = coefficient
        self._balance = Balance()
        self._losses: list[float] = []
        self._counts: list[np.ndarray] = []
        super().__init__(model, balance=self._balance, **options)

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        share = documents.total_weight * scale  # of the update
        self._balance.scale[0] = self._coefficient * share / len(self._balance.seen)
        loss = super().loss_and_gradients(documents, scale)
        self._losses.append(self._balance.loss(len(documents)))
        self._counts.append(np.stack([counts for counts, _ in self._balance.seen]))
        return loss

    def figures(self) -> dict[str, float]:
        """The loss of routers before it is multiplied, n_used where experts have equally many tokens; and by how much
        the experts with most and with least tokens of all layers differ from that, as factors.
        """
        if not self._losses:
            return {}
        counts = np.sum(self._counts, axis=0, dtype=np.float64)
        loads = counts / counts.mean(axis=-1, keepdims=True)
        loss = sum(self._losses) / len(self._losses)
        self._losses, self._counts = [], []
        return {
            "router_aux_loss": loss,
            "busiest_expert": float(loads.max()),
            "idlest_expert": float(loads.min()),
        }
