"""Learning to say how good an answer is: an adapter, and a linear head on the last token's hidden state.

It is what transformers calls a model for sequence classification with one label, and PEFT saves it as such: the head,
`score`, without a bias, stands among modules_to_save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters.adapter import SCORE
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data.dataset import Summary
from edgellm.train.data.encoder import Pair
from edgellm.train.data.kinds import RATED
from edgellm.train.documents import Documents
from edgellm.train.model_learner import DEFAULT_BATCH
from edgellm.train.preference.answers import AnswerBatches, Answers, longest_example
from edgellm.train.preference.bradley_terry import RewardLoss, bradley_terry_loss
from edgellm.train.preference.config import RewardConfig
from edgellm.train.preference.figures import Figures
from edgellm.train.preference.final_norm import FinalNorm
from edgellm.train.preference.numbers import Floats
from edgellm.train.preference.objective import preferred
from edgellm.train.task import Plan, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.train.adapter_learner import AdapterLearner

FIRST_DEVIATION = 0.02  # of the head's first weights, as in transformers


class RewardLearner:
    """See `Learner`; its documents are `Answers` of pairs. Among its parameters is `score.weight`, float32 [1, n_embd].

    margins:  float64 [n_examples], see `bradley_terry`.
    """

    def __init__(self, learner: AdapterLearner, margins: Floats, config: RewardConfig, seed: int = 0) -> None:
        self._learner, self._margins, self._config = learner, margins, config
        self._norm, self._figures = FinalNorm.of(learner.model), Figures()
        random = np.random.default_rng((seed, len(self._norm.weight)))
        learner.add_parameter(SCORE, random.normal(0, FIRST_DEVIATION, (1, len(self._norm.weight))))
        self.parameters, self.gradients, self.n_batch = learner.parameters, learner.gradients, learner.n_batch

    def begin_pass(self, step: int, index: int) -> None:
        self._learner.begin_pass(step, index)

    def figures(self) -> dict[str, float]:
        """Means over the pairs since the last call."""
        return self._figures.take()

    def adapter(self) -> Adapter:
        """What was learnt, copied."""
        return replace(self._learner.adapter(), score=self.parameters[SCORE].copy())

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        assert isinstance(documents, Answers)
        losses = 0.0

        def gradient_of(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal losses
            last = hidden[documents.ends]
            features = self._norm(last)
            found = self._judge(documents, features)
            losses = float(found.losses.sum())
            by_reward = scale * np.stack([found.by_chosen, found.by_rejected], axis=1).reshape(-1)
            self.gradients[SCORE] += (by_reward @ features).astype(np.float32)
            gradient = np.zeros_like(hidden)
            gradient[documents.ends] = self._norm.backward(last, by_reward[:, None] * self.parameters[SCORE])
            return gradient

        self._learner.gradients_by_hidden(documents, gradient_of)
        return losses

    def loss(self, documents: Documents) -> tuple[float, float]:
        assert isinstance(documents, Answers)
        found = self._judge(documents, self._norm(self._learner.hidden(documents)[documents.ends]))
        return float(found.losses.sum()), documents.total_weight

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        return self._learner.negative_log_likelihoods(documents)

    def _judge(self, answers: Answers, features: Floats) -> RewardLoss:
        rewards = features @ self.parameters[SCORE][0].astype(np.float64)
        chosen, rejected = rewards[0::2], rewards[1::2]
        with np.errstate(invalid="ignore", over="ignore"):  # the loop looks at the loss
            found = bradley_terry_loss(chosen, rejected, self._margins[answers.examples], self._config)
        self._figures.add({"accuracy": preferred(chosen - rejected), "margin": chosen - rejected,
                           "chosen_reward": chosen, "rejected_reward": rejected})  # fmt: skip
        return found


class RewardTask:
    """Learning a reward model from pairs."""

    kinds = RATED

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.settings = (config,)

    def advice(self, data: Summary, config: TrainConfig) -> list[str]:
        return []

    def digests(self) -> dict[str, str]:
        return {}

    @contextmanager
    def begin(self, plan: Plan) -> Iterator[Work]:
        if not isinstance(plan.lora, LoraConfig):
            raise UsageError(
                "lora is a FullConfig; a reward model is trained with a LoraConfig, whose adapter has a place for its "
                "head",
                parameter="lora",
            )
        if plan.lora.method not in ("lora", "dora"):
            raise UsageError(
                f"method is {plan.lora.method!r}; a reward model is trained with lora or dora, which have a place for "
                "its head",
                parameter="method",
            )
        n_batch = max(DEFAULT_BATCH, longest_example(plan.examples))
        batches = AnswerBatches(plan.examples, plan.n_learnt, plan.config, n_batch)
        with closing(plan.learner(n_batch)) as lora:
            learner = RewardLearner(lora, self._margins(plan.examples), self.config, plan.config.seed)
            yield Work(learner, batches, learner.adapter)

    def _margins(self, pairs: Sequence[Pair]) -> Floats:
        return np.array([self.config.margin if pair.margin is None else pair.margin for pair in pairs])
