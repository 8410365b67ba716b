"""What is made of answers: a loss for each example, and its derivatives by the likelihoods of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.train.preference.answers import Answers
from edgellm.train.preference.config import DpoConfig, KtoConfig, OrpoConfig
from edgellm.train.preference.dpo import dpo_loss
from edgellm.train.preference.kto import divergence, kto_loss
from edgellm.train.preference.likelihoods import Likelihoods, PairLoss
from edgellm.train.preference.numbers import Floats
from edgellm.train.preference.orpo import orpo_loss


@dataclass(frozen=True)
class Judgement:
    """losses: float64 [n_examples]. by_answer: float64 [n_answers], derivatives by log-likelihoods.

    figures:  float64 [n] each, what a person wants to know the mean of, by name.
    """

    losses: Floats
    by_answer: Floats
    figures: Mapping[str, Floats]


class Objective(Protocol):
    def begin(self, before: Sequence[tuple[Answers, Floats]]) -> None:
        """Take the likelihoods of what belongs to a whole batch: answers, with float64 [n_answers] for them."""

    def judge(self, answers: Answers, policy: Floats) -> Judgement:
        """policy: float64 [n_answers], the log-likelihoods of the answers."""


class OfPairs:
    """A loss of pairs. reference: float64 [n_examples, 2], log-likelihoods by the model without the adapter."""

    def __init__(self, loss: Callable[[Likelihoods, Likelihoods], PairLoss], reference: Floats | None = None) -> None:
        self._loss, self._reference = loss, reference

    @classmethod
    def dpo(cls, config: DpoConfig, reference: Floats) -> OfPairs:
        return cls(lambda chosen, rejected: dpo_loss(chosen, rejected, config), reference)

    @classmethod
    def orpo(cls, config: OrpoConfig) -> OfPairs:
        return cls(lambda chosen, rejected: orpo_loss(chosen, rejected, config))

    def begin(self, before: Sequence[tuple[Answers, Floats]]) -> None:
        pass

    def judge(self, answers: Answers, policy: Floats) -> Judgement:
        n_tokens = answers.n_tokens
        reference = np.zeros((len(policy) // 2, 2)) if self._reference is None else self._reference[answers.examples]
        chosen, rejected = (Likelihoods(policy[i::2], reference[:, i], n_tokens[i::2]) for i in (0, 1))
        found = self._loss(chosen, rejected)
        by_answer = np.stack([found.by_chosen, found.by_rejected], axis=1).reshape(-1)
        margins = found.chosen_rewards - found.rejected_rewards
        return Judgement(
            found.losses, by_answer, {"accuracy": preferred(margins), "margin": margins,
                                      "chosen_reward": found.chosen_rewards, "rejected_reward": found.rejected_rewards}
        )  # fmt: skip


class OfJudged:
    """The loss of KTO.

    good:        bool [n_examples].
    reference:   float64 [n_examples], log-likelihoods by the model without the adapter; mismatched: of those answers.
    """

    def __init__(self, config: KtoConfig, good: NDArray[np.bool_], reference: Floats, mismatched: Floats) -> None:
        self._config, self._good, self._reference, self._mismatched = config, good, reference, mismatched
        self._z = 0.0

    def begin(self, before: Sequence[tuple[Answers, Floats]]) -> None:
        parts = [
            Likelihoods(policy, self._mismatched[answers.examples], answers.n_tokens) for answers, policy in before
        ]
        self._z = divergence(Likelihoods(*(np.concatenate(kind) for kind in zip(*parts, strict=True))))

    def judge(self, answers: Answers, policy: Floats) -> Judgement:
        good = self._good[answers.examples]
        reference = self._reference[answers.examples]
        found = kto_loss(Likelihoods(policy, reference, answers.n_tokens), good, self._z, self._config)
        figures = {"good_reward": found.rewards[good], "bad_reward": found.rewards[~good],
                   "divergence": np.full(len(good), self._z)}  # fmt: skip
        return Judgement(found.losses, found.by_answer, figures)


def preferred(margins: Floats) -> Floats:
    """1 where the chosen answer is the better one."""
    return (margins > 0).astype(np.float64)
