"""What the learners share that train small weights beside a model's own, frozen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgellm.graph.adapters import Change, adapted
from edgellm.train.config import LoraConfig
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner
from edgellm.train.transposed import transposed_for

if TYPE_CHECKING:
    from edgellm.arch import ModelGraphs
    from edgellm.engine import Model
    from edgellm.formats.adapters import Adapter


class AdapterLearner(ModelLearner):
    """An adapter of a model; a kind of it says what it changes about the model's nodes.

    n_virtual:  tokens of its own that stand before every document.
    n_more:     tokens for which passes have room beside those of documents.
    """

    n_virtual = n_more = 0

    def __init__(
        self,
        model: Model,
        config: LoraConfig,
        *,
        n_batch: int = DEFAULT_BATCH,
        seed: int = 0,
        recompute: bool = False,
        in_bf16: bool = False,
    ) -> None:
        super().__init__(model, n_batch)
        self.config, self.seed = config, seed
        try:
            runner = model._runner
            graphs = adapted_body(runner.graphs, self.changes())
            transposed = transposed_for(runner, graphs)
            self.prepare(graphs, recompute, transposed, in_bf16, self.n_virtual, self.n_more)
        except BaseException:
            self.close()
            raise

    def changes(self) -> Mapping[str, Sequence[Change]]:
        """See `graph.adapters.adapted`; makes the parameters, at their first values."""
        raise NotImplementedError

    def adapter(self) -> Adapter:
        """What was learnt, copied."""
        raise NotImplementedError


def adapted_body(graphs: ModelGraphs, changes: Mapping[str, Sequence[Change]]) -> ModelGraphs:
    """A model with changes about the nodes of its body."""
    body, values = adapted(graphs.body, changes)
    return graphs._replace(body=body, hidden=values[graphs.hidden])
