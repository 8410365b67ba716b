"""Which learner trains small weights of a kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.train.adapter_learner import AdapterLearner
from edgellm.train.bottleneck import BottleneckLearner
from edgellm.train.lora import LoraLearner
from edgellm.train.virtual import VirtualLearner

if TYPE_CHECKING:
    from edgellm.engine import Model
    from edgellm.train.config import LoraConfig

_LEARNERS: dict[str, type[AdapterLearner]] = {
    "lora": LoraLearner,
    "dora": LoraLearner,
    "prompt": VirtualLearner,
    "p-tuning": VirtualLearner,
    "prefix": VirtualLearner,
    "adapter": BottleneckLearner,
}


def adapter_learner(model: Model, config: LoraConfig, **options: Any) -> AdapterLearner:
    """A learner of the kind that a configuration names; options: those of all of them."""
    return _LEARNERS[config.method](model, config, **options)
