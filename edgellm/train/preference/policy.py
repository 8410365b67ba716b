"""A learner from its own answers: it samples them, has them judged, and changes the likelihoods of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.adapter_set import AdapterSet
from edgellm.engine.adapters import LoadedAdapter
from edgellm.engine.drawing import Drawn, draw
from edgellm.train.data import order
from edgellm.train.data.encoder import Asked
from edgellm.train.documents import Documents
from edgellm.train.interruption import is_asked
from edgellm.train.preference.config import GrpoConfig, PpoConfig
from edgellm.train.preference.figures import Figures
from edgellm.train.preference.final_norm import FinalNorm
from edgellm.train.preference.grpo import clipped_loss, group_advantages, token_weights
from edgellm.train.preference.numbers import Floats
from edgellm.train.preference.ppo import general_advantages, token_rewards, value_loss, whitened
from edgellm.train.preference.reference import Reference
from edgellm.train.preference.rewards import Answered, Reward, total_rewards
from edgellm.train.preference.rollout import Answer, Sampled, in_passes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.train.adapter_learner import AdapterLearner

VALUE, VALUE_BIAS = "value.weight", "value.bias"
HELD = 0x4E1D  # tells the draws of validation from those of steps


class HeldPrompts(Documents):
    """Prompts to validate with: documents without targets. Each is answered once, by the same draws every time."""


class PolicyLearner:
    """See `Learner`. What it learns are `Sampled` answers; what it is validated with are `HeldPrompts`, whose loss is
    what their answers lack of a reward: minus it.

    prompts:    all, those to validate with too.
    reference:  the model without the adapter; None where nothing is compared with it.

    PPO has a value head: linear, on the state after the last norm that a token is predicted from. It is trained beside,
    and no gradient goes from it into the adapter: so it cannot harm what the model says.
    """

    def __init__(
        self,
        learner: AdapterLearner,
        config: GrpoConfig | PpoConfig,
        prompts: Sequence[Asked],
        rewards: Sequence[Reward],
        reference: Reference | None,
        seed: int = 0,
    ) -> None:
        self._learner, self._config, self._prompts, self._rewards = learner, config, prompts, rewards
        self._reference, self._seed = reference, seed
        self._norm: FinalNorm | None = None
        self._figures = Figures()
        self._beta = config.beta
        if isinstance(config, PpoConfig):
            self._beta = 0.0  # what it costs to be far from the reference is a part of the rewards
            self._norm = FinalNorm.of(learner.model)
            learner.add_parameter(VALUE, np.zeros((1, len(self._norm.weight))))
            learner.add_parameter(VALUE_BIAS, np.zeros(1))
        self.parameters, self.gradients, self.n_batch = learner.parameters, learner.gradients, learner.n_batch

    def begin_pass(self, step: int, index: int) -> None:
        self._learner.begin_pass(step, index)

    def figures(self) -> dict[str, float]:
        """Means over the answers or tokens since the last call."""
        return self._figures.take()

    # --- sampling -------------------------------------------------------------------------------------------

    def sample(self, numbers: Sequence[int], n_each: int, *seed: int) -> list[Answer]:
        """Answers to some prompts, n_each to each, one prompt after the other, with their rewards.

        None when somebody asked to stop meanwhile. Raises RewardError when these cannot be had.
        """
        model, config = self._learner.model, self._config
        scheduler = model._scheduler
        # As it is now: whatever kind of small weights it has, it is loaded as one that was trained.
        adapter = LoadedAdapter("trained", None, self._learner.adapter(), model._runner.tensors)
        used = AdapterSet(((adapter, 1.0),))
        room = model.n_ctx - used.n_virtual
        requests = [
            Drawn(prompt, min(config.max_new_tokens, room - len(prompt)), model.tokenizer.stop_ids,
                  (self._seed, *seed, number, n), used, is_asked)
            for number in numbers
            for prompt in [self._prompts[number].documents.ids.tolist()]
            for n in range(n_each)
        ]  # fmt: skip
        try:
            draw(scheduler, requests)
        finally:
            scheduler.forget(adapter)
        if is_asked():
            return []
        return self._judged([number for number in numbers for _ in range(n_each)], requests)

    def _judged(self, numbers: Sequence[int], requests: Sequence[Drawn]) -> list[Answer]:
        tokenizer = self._learner.model.tokenizer
        found = []
        for number, request in zip(numbers, requests, strict=True):
            said = request.answer[:-1] if request.has_ended else request.answer
            prompt = self._prompts[number].prompt
            text = tokenizer.decode(said, skip_special=True)
            found.append(Answered(prompt.asked, text, request.written, prompt.columns))
        rewards = total_rewards(self._rewards, found)
        lengths = np.array([len(request.answer) for request in requests], np.float64)
        self._figures.add({"reward": rewards, "answer_tokens": lengths})
        return [
            Answer(number, one.text, request.written, len(request.written) - len(request.answer), float(reward))
            for number, one, request, reward in zip(numbers, found, requests, rewards, strict=True)
        ]

    # --- what is learnt from answers ------------------------------------------------------------------------

    def look_at(self, answers: Sequence[Answer]) -> None:
        """Note what the model says of answers, now that it is as it was when they were sampled."""
        config = self._config
        needs_own = isinstance(config, PpoConfig) or config.num_iterations > 1
        for group in order.packed([len(answer.ids) for answer in answers], self.n_batch):
            some = [answers[n] for n in group]
            joined = Documents.joined([answer.document for answer in some])
            ends = np.cumsum([answer.n_tokens for answer in some])[:-1]
            if self._reference is not None:
                for answer, part in zip(
                    some, np.split(self._reference.negative_log_likelihoods(joined), ends), strict=True
                ):
                    answer.reference = part.tolist()
            if needs_own:
                states: list[NDArray[np.float32]] = []
                nlls = self._learner.negative_log_likelihoods(joined, states.append)
                for answer, part in zip(some, np.split(nlls, ends), strict=True):
                    answer.nll = part.tolist()
                if self._norm is not None:
                    values = np.split(self._values(self._norm(states[0])), ends)
                    for answer, own in zip(some, values, strict=True):
                        answer.values = own.tolist()

    def passes(self, answers: Sequence[Answer]) -> list[Sampled]:
        """Answers with their advantages, as passes. They are those of whole groups, prompt after prompt."""
        config = self._config
        if isinstance(config, PpoConfig):
            return self._passes_of_ppo(answers, config)
        rewards = np.array([answer.reward for answer in answers]).reshape(-1, config.num_generations)
        self._figures.add({"equal_groups": (np.ptp(rewards, axis=1) == 0).astype(np.float64)})  # they teach nothing
        each = group_advantages(rewards, config.scale_rewards).reshape(-1)
        advantages = [np.full(answer.n_tokens, a) for answer, a in zip(answers, each, strict=True)]
        weights = self._weights(answers, config.loss_type)
        return in_passes(answers, self.n_batch, weights, advantages)

    def _passes_of_ppo(self, answers: Sequence[Answer], config: PpoConfig) -> list[Sampled]:
        estimated, returns = [], []
        for answer in answers:
            policy, values = -np.array(answer.nll), np.array(answer.values)
            reference = policy if answer.reference is None else -np.array(answer.reference)
            rewards = token_rewards(answer.reward, policy, reference, config.beta)
            estimated.append(general_advantages(rewards, values, config.gamma, config.lam))
            returns.append(estimated[-1] + values)
        ends = np.cumsum([answer.n_tokens for answer in answers])[:-1]
        advantages = np.split(whitened(np.concatenate(estimated)), ends)
        return in_passes(answers, self.n_batch, self._weights(answers, "dapo"), advantages, returns)

    def _weights(self, answers: Sequence[Answer], loss_type: str) -> list[Floats]:
        """What each token counts in a sum over answers, of which the loop takes the mean."""
        n_tokens = np.array([answer.n_tokens for answer in answers], np.float64)
        each = token_weights(n_tokens, self._config.max_new_tokens, loss_type) * len(answers)
        return [np.full(answer.n_tokens, weight) for answer, weight in zip(answers, each, strict=True)]

    # --- learning -------------------------------------------------------------------------------------------

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        assert isinstance(documents, Sampled)
        sampled, losses = documents, 0.0

        def weigh(nlls: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal losses
            policy = -nlls.astype(np.float64)
            old = policy if sampled.old is None else sampled.old
            with np.errstate(invalid="ignore", over="ignore"):  # the loop looks at the loss
                found = clipped_loss(
                    policy, old, sampled.reference, sampled.advantages, self._config.clip_ratio, self._beta
                )
            losses += float(sampled.weights_of_tokens @ found.losses)
            self._figures.add({"divergence": found.divergences, "clipped": found.is_clipped})
            return (-scale * sampled.weights_of_tokens * found.by_token).astype(np.float32)

        def look(states: NDArray[np.float32]) -> None:
            nonlocal losses
            if self._norm is not None:
                losses += self._learn_values(sampled, self._norm(states), scale)

        self._learner.gradients_by(sampled, weigh, look)
        return losses

    def loss(self, documents: Documents) -> tuple[float, float]:
        assert isinstance(documents, HeldPrompts)
        first = len(self._prompts) - documents.n_documents
        answers = self.sample(range(first, len(self._prompts)), 1, HELD)
        return -sum(answer.reward for answer in answers), float(len(answers))

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        return self._learner.negative_log_likelihoods(documents)

    def _values(self, features: Floats) -> Floats:
        return np.asarray(
            features @ self.parameters[VALUE][0].astype(np.float64) + float(self.parameters[VALUE_BIAS][0])
        )

    def _learn_values(self, sampled: Sampled, features: Floats, scale: float) -> float:
        """Add the gradients of the value head; gives its part of the loss."""
        config = self._config
        assert isinstance(config, PpoConfig) and sampled.returns is not None and sampled.old_values is not None
        found = value_loss(self._values(features), sampled.old_values, sampled.returns, config.clip_value)
        self._figures.add({"value_loss": found.losses})
        weights = config.vf_coef * sampled.weights_of_tokens
        by_value = scale * weights * found.by_value
        self.gradients[VALUE] += (by_value @ features).astype(np.float32)
        self.gradients[VALUE_BIAS] += np.float32(by_value.sum())
        return float(weights @ found.losses)
