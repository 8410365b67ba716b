"""Bottleneck adapters: small networks behind the halves of layers (Houlsby et al., 2019; after feed-forwards alone:
Pfeiffer et al., 2021).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import Bottleneck as Arrays
from edgellm.graph.adapters import Bottleneck, adapted
from edgellm.train.config import LoraConfig
from edgellm.train.model_learner import DEFAULT_BATCH, ModelLearner
from edgellm.train.transposed import transposed_for

if TYPE_CHECKING:
    from edgellm.engine import Model

PLACES = {"ffn": ("ffn_out",), "attention": ("attn_out",), "both": ("attn_out", "ffn_out")}


class BottleneckLearner(ModelLearner):
    """h + up activation(down h + down_bias) + up_bias, for what halves of layers make.

    Parameters: `blk.0.ffn_out.down` and `.up` [size, n_embd], up transposed; `.down_bias` [size], `.up_bias` [n_embd].
    """

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
        self.config = config
        try:
            runner, random = model._runner, np.random.default_rng(seed)
            values = runner.graphs.body.values
            self._names = [name for name in values if name.endswith(PLACES[config.bottleneck_at])]
            if not self._names:
                raise UnsupportedError(f"a {model.config.architecture} model has no halves of layers to train behind")
            changes = {name: [self._bottleneck(name, values[name].width, random)] for name in self._names}
            body, became = adapted(runner.graphs.body, changes)
            graphs = replace(runner.graphs, body=body, hidden=became[runner.graphs.hidden])
            self.prepare(graphs, recompute, transposed_for(runner, graphs), in_bf16)
        except BaseException:
            self.close()
            raise

    def _bottleneck(self, name: str, width: int, random: np.random.Generator) -> Bottleneck:
        """It changes nothing at first, for what it adds is 0."""
        size, bound = self.config.bottleneck, 1 / np.sqrt(width)
        return Bottleneck(
            self.train(f"{name}.down", random.uniform(-bound, bound, (size, width))),
            self.train(f"{name}.down_bias", np.zeros(size)),
            self.train(f"{name}.up", np.zeros((size, width))),
            self.train(f"{name}.up_bias", np.zeros(width)),
            self.config.bottleneck_activation,
        )

    def adapter(self) -> Adapter:
        """What was learnt, copied."""
        found = {}
        for name in self._names:
            down, down_bias, up, up_bias = (
                self.parameters[f"{name}.{part}"].copy() for part in ("down", "down_bias", "up", "up_bias")
            )
            found[name] = Arrays(
                down, down_bias, np.ascontiguousarray(up.T), up_bias, self.config.bottleneck_activation
            )
        architecture = self.model.metadata["general.architecture"]
        return Adapter(architecture, {}, base_name=self.model.path.stem, bottlenecks=found)
