"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, equations 7 and 8): answers that are good or not, no pairs.

With r(y) = log p(y | x) - log p_ref(y | x) and z, an estimate of how far the model is from the reference:

    good   lambda_D (1 - sigma(beta (r - z)))
    not    lambda_U (1 - sigma(beta (z - r)))

z is the mean of r over answers to other prompts than their own, at least 0. No gradient goes through it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.train.preference.config import KtoConfig
from edgellm.train.preference.likelihoods import JudgedLoss, Likelihoods
from edgellm.train.preference.numbers import sigmoid


def kto_loss(answers: Likelihoods, good: NDArray[np.bool_], z: float, config: KtoConfig) -> JudgedLoss:
    """The loss of judged answers. good: bool [n]. Rewards are beta * r(y)."""
    beta, sign = config.beta, np.where(good, 1.0, -1.0)
    weights = np.where(good, config.desirable_weight, config.undesirable_weight)
    inside = sigmoid(beta * sign * (answers.log_ratio - z))
    slope = -weights * inside * (1 - inside) * beta * sign
    return JudgedLoss(weights * (1 - inside), slope, beta * answers.log_ratio)


def divergence(mismatched: Likelihoods) -> float:
    """z, from answers behind the prompts of others."""
    return max(0.0, float(mismatched.log_ratio.mean())) if len(mismatched.policy) else 0.0
