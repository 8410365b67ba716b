"""What is known of some answers, and what a loss makes of that."""

from __future__ import annotations

from typing import NamedTuple

from edgellm.train.preference.numbers import Floats


class Likelihoods(NamedTuple):
    """Of n answers, float64 [n] each.

    policy:     log-likelihood of each answer, the sum over its tokens, by the model that is trained.
    reference:  the same by the model without the adapter; zeros where a loss needs none.
    n_tokens:   of each answer.
    """

    policy: Floats
    reference: Floats
    n_tokens: Floats

    @property
    def log_ratio(self) -> Floats:
        return self.policy - self.reference


class PairLoss(NamedTuple):
    """Of n pairs, float64 [n] each.

    losses:      to be averaged.
    by_chosen, by_rejected: their derivatives by the log-likelihoods of the two answers.
    chosen_rewards, rejected_rewards: how good the model finds them, by the measure of the loss.
    """

    losses: Floats
    by_chosen: Floats
    by_rejected: Floats
    chosen_rewards: Floats
    rejected_rewards: Floats


class JudgedLoss(NamedTuple):
    """Of n answers, float64 [n] each: losses, derivatives by their log-likelihoods, and rewards as in `PairLoss`."""

    losses: Floats
    by_answer: Floats
    rewards: Floats
