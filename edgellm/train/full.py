"""Training of all weights of a model, as float32 in memory: what fits, and what begins from nothing."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgellm.arch import architecture_of
from edgellm.errors import MemoryLimitError, UsageError, size_text
from edgellm.formats.adapters import Adapter
from edgellm.machine import available_memory
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner

if TYPE_CHECKING:
    from edgellm.engine import Model
    from edgellm.formats.tensor import Tensor
    from edgellm.graph.nodes.expert_gradients import Balance


# Of each trained weight: itself, its gradient, AdamW's two means, and at the end a copy of what was learnt.
BYTES = 20


def check_memory(model: Model, freeze: tuple[str, ...] = ()) -> None:
    """Raise MemoryLimitError for a model whose weights cannot all be trained here, before anything is read for it."""
    trained = [
        tensor for name, tensor in model._runner.tensors.items()
        if not any(f"{name}.".startswith(f"{start}.") for start in freeze)
    ]  # fmt: skip
    n_bytes = BYTES * sum(prod(tensor.shape) for tensor in trained)
    if n_bytes > (free := available_memory()):
        raise MemoryLimitError(
            f"training all weights of {model.path.name} needs {size_text(n_bytes)}, and {size_text(free)} are free; "
            "leave some as they are (freeze), or train small weights beside them (`edgellm train lora`)",
            parameter="freeze",
        )


class FullLearner(ModelLearner):
    """Every weight of a model; parameters have the names of the file's tensors.

    freeze:  tensors that are not trained, by their names or the beginnings of these. Raises UsageError for one that no
             tensor has, and when nothing is left to train.
    balance: a loss of routers; see `Balance`.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_batch: int = DEFAULT_BATCH,
        recompute: bool = False,
        in_bf16: bool = False,
        freeze: tuple[str, ...] = (),
        balance: Balance | None = None,
    ) -> None:
        super().__init__(model, n_batch)
        try:
            runner = model._runner
            used = {w.name for g in (runner.graphs.body, runner.graphs.head) for node in g.nodes for w in node.weights}
            frozen = {name for name in used for start in freeze if f"{name}.".startswith(f"{start}.")}
            for start in freeze:
                if not any(f"{name}.".startswith(f"{start}.") for name in used):
                    raise UsageError(f"freeze names {start!r:.60}, and no tensor's name is that or begins with it")
            if frozen == used:
                raise UsageError("freeze leaves nothing to train")
            tensors: dict[str, Tensor] = {}
            for name, tensor in runner.tensors.items():
                trained = name in used and name not in frozen
                tensors[name] = self.train(name, np.ascontiguousarray(tensor.dequantize())) if trained else tensor
            graphs = architecture_of(model.metadata).record(model.config, tensors)
            self.prepare(graphs, recompute, in_bf16=in_bf16, balance=balance)
        except BaseException:
            self.close()
            raise

    def adapter(self) -> Adapter:
        """All weights as they are now, copied, in place of the model's own."""
        model = self.model
        weights = {name: array.copy() for name, array in self.parameters.items()}
        if "token_embd.weight" in weights and "output.weight" not in model._runner.tensors:
            weights["output.weight"] = weights["token_embd.weight"]  # one matrix serves as both
        return Adapter(model.metadata["general.architecture"], {}, replaced=weights, base_name=model.path.stem)
