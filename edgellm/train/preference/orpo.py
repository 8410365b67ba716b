"""Odds ratio preference optimization (Hong et al., 2024, equations 3 to 7): learning to answer and to prefer at once.

With P(y | x) the geometric mean of the probabilities of an answer's tokens, and odds(y) = P / (1 - P):

    -log P(chosen) - beta log sigma(log odds(chosen) - log odds(rejected))

The first part is the usual loss, here over the tokens of the chosen answer; no reference is needed. beta is lambda
in the paper.
"""

from __future__ import annotations

import numpy as np

from edgellm.train.preference.config import OrpoConfig
from edgellm.train.preference.likelihoods import Likelihoods, PairLoss
from edgellm.train.preference.numbers import Floats, log_one_minus_exp, log_sigmoid, sigmoid

LARGEST = -1e-9  # a mean log-likelihood of 0, of an answer that is certain, has no odds


def orpo_loss(chosen: Likelihoods, rejected: Likelihoods, config: OrpoConfig) -> PairLoss:
    """The loss of pairs. Rewards are beta * log P(y), as TRL has them."""
    beta = config.beta
    means = [np.minimum(side.policy / side.n_tokens, LARGEST) for side in (chosen, rejected)]
    log_odds = _log_odds(means[0]) - _log_odds(means[1])
    losses = -means[0] - beta * log_sigmoid(log_odds)
    slope = -beta * sigmoid(-log_odds)
    by_chosen = (slope * _slope_of_log_odds(means[0]) - 1) / chosen.n_tokens
    by_rejected = -slope * _slope_of_log_odds(means[1]) / rejected.n_tokens
    return PairLoss(losses, by_chosen, by_rejected, beta * means[0], beta * means[1])


def _log_odds(mean: Floats) -> Floats:
    return np.asarray(mean - log_one_minus_exp(mean))


def _slope_of_log_odds(mean: Floats) -> Floats:
    """1 / (1 - P)"""
    return np.asarray(-1 / np.expm1(mean))
