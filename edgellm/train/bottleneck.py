"""Bottleneck adapters: small networks behind the halves of layers (Houlsby et al., 2019; after feed-forwards alone:
Pfeiffer et al., 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import UnsupportedError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters import Bottleneck as Arrays
from edgellm.graph.adapters import Bottleneck
from edgellm.train.adapter_learner import AdapterLearner

if TYPE_CHECKING:
    pass

PLACES = {"ffn": ("ffn_out",), "attention": ("attn_out",), "both": ("attn_out", "ffn_out")}


class BottleneckLearner(AdapterLearner):
    """h + up activation(down h + down_bias) + up_bias, for what halves of layers make.

    Parameters: `blk.0.ffn_out.down` and `.up` [size, n_embd], up transposed; `.down_bias` [size], `.up_bias` [n_embd].
    """

    def changes(self) -> dict[str, list[Bottleneck]]:
        values, random = self.model._runner.graphs.body.values, np.random.default_rng(self.seed)
        self._names = [name for name in values if name.endswith(PLACES[self.config.bottleneck_at])]
        if not self._names:
            raise UnsupportedError(f"a {self.model.config.architecture} model has no halves of layers to train behind")
        return {name: [self._bottleneck(name, values[name].width, random)] for name in self._names}

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
