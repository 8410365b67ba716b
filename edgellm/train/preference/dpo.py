"""Direct preference optimization (Rafailov et al., 2023, equation 7), and two losses of the same log-ratios.

With r(y) = log p(y | x) - log p_ref(y | x), the difference d = r(chosen) - r(rejected), and beta:

    sigmoid  -(1 - e) log sigma(beta d) - e log sigma(-beta d)    e: label smoothing (Mitchell, 2023: cDPO)
    hinge    max(0, 1 - beta d)                                   (Zhao et al., 2023: SLiC)
    ipo      (d' - 1 / (2 beta))^2                                (Azar et al., 2023, equation 17)

In ipo, d' is the difference of log-ratios per token, as its authors have it in their code.
"""

from __future__ import annotations

import numpy as np

from edgellm.train.preference.config import DpoConfig
from edgellm.train.preference.likelihoods import Likelihoods, PairLoss
from edgellm.train.preference.numbers import log_sigmoid, sigmoid


def dpo_loss(chosen: Likelihoods, rejected: Likelihoods, config: DpoConfig) -> PairLoss:
    """The loss of pairs. Rewards are beta * r(y)."""
    beta = config.beta
    by_chosen, by_rejected = np.ones_like(chosen.policy), -np.ones_like(rejected.policy)
    if config.loss_type == "ipo":
        by_chosen, by_rejected = by_chosen / chosen.n_tokens, by_rejected / rejected.n_tokens
    d = chosen.log_ratio * by_chosen + rejected.log_ratio * by_rejected
    if config.loss_type == "sigmoid":
        e = config.label_smoothing
        losses = -(1 - e) * log_sigmoid(beta * d) - e * log_sigmoid(-beta * d)
        slope = beta * (e * sigmoid(beta * d) - (1 - e) * sigmoid(-beta * d))
    elif config.loss_type == "hinge":
        losses = np.maximum(0.0, 1 - beta * d)
        slope = np.where(losses > 0, -beta, 0.0)
    else:
        losses = (d - 1 / (2 * beta)) ** 2
        slope = 2 * (d - 1 / (2 * beta))
    return PairLoss(losses, slope * by_chosen, slope * by_rejected, beta * chosen.log_ratio, beta * rejected.log_ratio)
