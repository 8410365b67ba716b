"""Learning from preferences that are written down: DPO and its like, KTO, ORPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np

from edgellm.errors import UsageError
from edgellm.train.config import TrainConfig
from edgellm.train.data.dataset import Summary
from edgellm.train.data.kinds import LABELLED, PREFERENCES, Kind
from edgellm.train.documents import Documents
from edgellm.train.model_learner import DEFAULT_BATCH
from edgellm.train.preference.answers import (
    AnswerBatches,
    documents_of_answers,
    longest_example,
    mismatched_answers,
)
from edgellm.train.preference.config import DpoConfig, KtoConfig, OrpoConfig
from edgellm.train.preference.kto import kto_advice
from edgellm.train.preference.learner import AnswerLearner
from edgellm.train.preference.objective import Objective, OfJudged, OfPairs
from edgellm.train.preference.reference import reference_likelihoods
from edgellm.train.task import Plan, Work


class Offline:
    """A task whose loss is one of answers that are written down. config says which."""

    def __init__(self, config: DpoConfig | KtoConfig | OrpoConfig) -> None:
        self.config = config
        self.settings = (config,)
        self.kinds: Sequence[Kind] = LABELLED if isinstance(config, KtoConfig) else PREFERENCES

    def advice(self, data: Summary, config: TrainConfig) -> list[str]:
        return kto_advice(data, self.config, config) if isinstance(self.config, KtoConfig) else []

    def digests(self) -> dict[str, str]:
        return {}

    @contextmanager
    def begin(self, plan: Plan) -> Iterator[Work]:
        n_batch = max(DEFAULT_BATCH, longest_example(plan.examples))
        mismatched = self._mismatched(plan, n_batch)
        objective = self._objective(plan, n_batch, mismatched)
        with closing(plan.learner(n_batch)) as learner:
            batches = AnswerBatches(plan.examples, plan.n_learnt, plan.config, n_batch, mismatched)
            yield Work(AnswerLearner(learner, objective), batches, learner.adapter)

    def _mismatched(self, plan: Plan, n_batch: int) -> list[Documents]:
        if not isinstance(self.config, KtoConfig):
            return []
        if len(plan.examples) == 1:
            raise UsageError(
                "KTO compares each answer with one to another prompt, and there is one example; expected two at least"
            )
        return mismatched_answers(plan.examples, min(n_batch, plan.model.n_ctx))

    def _objective(self, plan: Plan, n_batch: int, mismatched: Sequence[Documents]) -> Objective:
        config = self.config
        if isinstance(config, OrpoConfig):
            return OfPairs.orpo(config)
        answers = [answer for example in plan.examples for answer in documents_of_answers(example)]
        every = [*answers, *mismatched]
        reference = reference_likelihoods(plan.model, every, n_batch, plan.folder, plan.digest)
        if isinstance(config, DpoConfig):
            return OfPairs.dpo(config, reference.reshape(-1, 2))
        good = np.array([example.good for example in plan.examples])
        return OfJudged(config, good, reference[: len(answers)], reference[len(answers) :])
