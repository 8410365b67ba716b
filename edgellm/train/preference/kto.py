"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, equations 7 and 8): answers that are good or not, no pairs.

With r(y) = log p(y | x) - log p_ref(y | x) and z, an estimate of how far the model is from the reference:

    good   lambda_D (1 - sigma(beta (r - z)))
    not    lambda_U (1 - sigma(beta (z - r)))

z is the mean of r over answers to other prompts than their own, at least 0. No gradient goes through it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.train.config import TrainConfig
from edgellm.train.data.dataset import Summary
from edgellm.train.preference.config import KtoConfig
from edgellm.train.preference.likelihoods import JudgedLoss, Likelihoods
from edgellm.train.preference.numbers import sigmoid

LARGEST_RATIO = 4 / 3  # of what good answers count to what the others do


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


def kto_advice(data: Summary, config: KtoConfig, train: TrainConfig) -> list[str]:
    """What a person should know of such data: that one kind of answers is missing or outweighs the other, and that z is
    a guess from one answer. The bounds of weights are those of TRL.
    """
    found = []
    n_good, n_bad = data.n_good, data.n_not_good
    if not n_good or not n_bad:
        which = "good, so nothing says what to avoid" if n_good else "not good, so nothing says what to say instead"
        more = "; `edgellm train lora` imitates good answers" if n_good else ""
        found.append(f"all {n_good + n_bad:,} answers are {which}: KTO learns from both kinds{more}")
    elif not config.desirable_weight or not config.undesirable_weight:  # on purpose: nothing is to balance
        name, n = ("desirable", n_good) if not config.desirable_weight else ("undesirable", n_bad)
        found.append(f"{n:,} of {n_good + n_bad:,} answers count nothing, for --{name}-weight is 0")
    else:
        ratio = config.desirable_weight * n_good / max(config.undesirable_weight * n_bad, 1e-12)
        if not 0.99 <= ratio <= LARGEST_RATIO * 1.01:
            of_bad = n_good * config.desirable_weight / n_bad
            of_good = n_bad * config.undesirable_weight / n_good
            found.append(
                f"{n_good:,} answers are good and {n_bad:,} are not; that both count alike, give --undesirable-weight"
                f" {of_bad / LARGEST_RATIO:.2g} to {of_bad:.2g}, or --desirable-weight {of_good:.2g} to"
                f" {of_good * LARGEST_RATIO:.2g}"
            )
    if train.batch_size * train.accumulate == 1:
        found.append(
            "with one example for an update (--batch-size), how far the model is from the reference is guessed from "
            "one answer; more of them are steadier"
        )
    return found
