"""What a run learns and how: the part of training in which imitation, preferences and rewards differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgellm.engine.model import Model
from edgellm.formats.adapters import Adapter
from edgellm.train.config import FullConfig, LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.data.dataset import Summary
from edgellm.train.data.kinds import Kind
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.learner import Learner
from edgellm.train.loop import Batches


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin.

    examples:  all of them, of the kinds that the task wants; the first n_learnt are learnt, the others validate.
    lora:      what is trained; learner: makes it, a LoraLearner or another kind, for passes of so many tokens.
    folder:    where the run leaves what it does, if it leaves anything; it may not exist yet.
    digest:    tells this data and model from others.
    """

    model: Model
    examples: Sequence[Any]
    n_learnt: int
    config: TrainConfig
    data: DataConfig
    vocabulary: Vocabulary
    lora: LoraConfig | FullConfig
    learner: Callable[[int], Any]
    folder: Path | None
    digest: str


class Work(NamedTuple):
    """What the loop needs, and what becomes of it. adapter: the one that is trained, as it is when this is called."""

    learner: Learner
    batches: Batches
    adapter: Callable[[], Adapter]


class Task(Protocol):
    """kinds: of examples that it learns from. settings: parameter objects of its own."""

    @property
    def kinds(self) -> Sequence[Kind]: ...

    @property
    def settings(self) -> Sequence[Any]: ...

    def advice(self, data: Summary, config: TrainConfig) -> list[str]:
        """What a person should know who wants to learn from such data so."""

    def digests(self) -> Mapping[str, str]:
        """Of what else the weights depend on, by names that end in "_digest"."""

    def begin(self, plan: Plan) -> AbstractContextManager[Work]:
        """Raises UsageError for settings and data that do not go together."""
