"""The loss of reward models: how likely the preferences are (Bradley and Terry, 1952).

    -log sigma(r(chosen) - r(rejected) - margin) + c (r(chosen) + r(rejected))^2

With a margin, a pair counts as well told apart only where the rewards differ by more (Touvron et al., 2023: Llama 2).
The second part keeps rewards around zero (Eisenstein et al., 2023); c is 0 usually.
"""

from __future__ import annotations

from typing import NamedTuple

from edgellm.train.preference.config import RewardConfig
from edgellm.train.preference.numbers import Floats, log_sigmoid, sigmoid


class RewardLoss(NamedTuple):
    """Of n pairs, float64 [n]: losses, and their derivatives by the two rewards."""

    losses: Floats
    by_chosen: Floats
    by_rejected: Floats


def bradley_terry_loss(chosen: Floats, rejected: Floats, margins: Floats, config: RewardConfig) -> RewardLoss:
    """The loss of the rewards of pairs, with the margin of each."""
    d, total, c = chosen - rejected - margins, chosen + rejected, config.center_rewards
    slope, centering = -sigmoid(-d), 2 * c * total
    return RewardLoss(c * total**2 - log_sigmoid(d), centering + slope, centering - slope)
