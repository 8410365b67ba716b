"""A learner whose loss is one of answers: each token's weight is the derivative of the loss by its likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.train.documents import Documents
from edgellm.train.preference.answers import Answers
from edgellm.train.preference.figures import Figures
from edgellm.train.preference.numbers import Floats
from edgellm.train.preference.objective import Judgement, Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.train.model_learner import ModelLearner


class AnswerLearner:
    """See `Learner`; its documents are `Answers`, and its loss is the sum over examples."""

    def __init__(self, learner: ModelLearner, objective: Objective) -> None:
        self.parameters, self.gradients, self.n_batch = learner.parameters, learner.gradients, learner.n_batch
        self._learner, self._objective = learner, objective
        self._figures = Figures()

    def begin_pass(self, step: int, index: int) -> None:
        self._learner.begin_pass(step, index)

    def figures(self) -> dict[str, float]:
        """Means over the examples since the last call."""
        return self._figures.take()

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        answers = self._begun(documents)
        losses = 0.0

        def weigh(nlls: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal losses
            found = self._judge(answers, nlls)
            losses = float(found.losses.sum())
            # A token's likelihood falls as its nll rises.
            return (-scale * found.by_answer[answers.owners]).astype(np.float32)

        self._learner.gradients_by(answers, weigh)
        return losses

    def loss(self, documents: Documents) -> tuple[float, float]:
        answers = self._begun(documents)
        found = self._judge(answers, self._learner.negative_log_likelihoods(answers))
        return float(found.losses.sum()), answers.total_weight

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        return self._learner.negative_log_likelihoods(documents)

    def _begun(self, documents: Documents) -> Answers:
        assert isinstance(documents, Answers)
        if documents.before:
            self._objective.begin([(answers, self._likelihoods(answers)) for answers in documents.before])
        return documents

    def _likelihoods(self, answers: Answers) -> Floats:
        return answers.log_likelihoods(self._learner.negative_log_likelihoods(answers))

    def _judge(self, answers: Answers, nlls: NDArray[np.float32]) -> Judgement:
        with np.errstate(invalid="ignore", over="ignore"):  # the loop looks at the loss
            found = self._objective.judge(answers, answers.log_likelihoods(nlls))
        self._figures.add(found.figures)
        return found
