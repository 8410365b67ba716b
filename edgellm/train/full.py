"""Training of all weights of a model, as float32 in memory: what fits, and what begins from nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.arch import architecture_of
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner

if TYPE_CHECKING:
    from edgellm.engine import Model
    from edgellm.formats.tensor import Tensor


class FullLearner(ModelLearner):
    """Every weight of a model; parameters have the names of the file's tensors.

    frozen:  names of tensors that are not trained.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_batch: int = DEFAULT_BATCH,
        recompute: bool = False,
        frozen: tuple[str, ...] = (),
        in_bf16: bool = False,
    ) -> None:
        super().__init__(model, n_batch)
        try:
            runner = model._runner
            used = {w.name for g in (runner.graphs.body, runner.graphs.head) for node in g.nodes for w in node.weights}
            tensors: dict[str, Tensor] = {}
            for name, tensor in runner.tensors.items():
                trained = name in used and name not in frozen
                tensors[name] = self.train(name, np.ascontiguousarray(tensor.dequantize())) if trained else tensor
            self.prepare(architecture_of(model.metadata).record(model.config, tensors), recompute, in_bf16=in_bf16)
        except BaseException:
            self.close()
            raise
