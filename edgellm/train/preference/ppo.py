"""Proximal policy optimization (Schulman et al., 2017) of answers: what is its own beside the clipped objective.

Every token is an action. Its reward is what the answer is worth, at the last token, less beta times how much likelier
it is than by the reference (Ziegler et al., 2019). Advantages are estimated from values (GAE; Schulman et al., 2016):

    delta_t = reward_t + gamma V_t+1 - V_t,    A_t = delta_t + gamma lambda A_t+1,    return_t = A_t + V_t

The value head learns the returns, and its steps are clipped as those of the policy are:

    1/2 max((V - return)^2, (clip(V, V_old - epsilon, V_old + epsilon) - return)^2)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgellm.train.preference.numbers import Floats


class ValueLoss(NamedTuple):
    """Of n tokens, float64 [n]: losses, and their derivatives by the values."""

    losses: Floats
    by_value: Floats


def token_rewards(reward: float, policy: Floats, reference: Floats, beta: float) -> Floats:
    """float64 [n], of the tokens of one answer."""
    rewards = -beta * (policy - reference)
    rewards[-1] += reward
    return rewards


def general_advantages(rewards: Floats, values: Floats, gamma: float, lam: float) -> Floats:
    """float64 [n], of the tokens of one answer; after its last one there is nothing of value."""
    advantages, following = np.zeros_like(rewards), 0.0
    after = np.append(values[1:], 0.0)
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + gamma * after[t] - values[t] + gamma * lam * following
        advantages[t] = following
    return advantages


def whitened(x: Floats) -> Floats:
    """With a mean of 0 and a variance of 1."""
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + 1e-8))


def value_loss(values: Floats, old: Floats, returns: Floats, epsilon: float) -> ValueLoss:
    """The loss of the values of tokens."""
    clipped = np.clip(values, old - epsilon, old + epsilon)
    apart, apart_clipped = values - returns, clipped - returns
    is_clipped = apart_clipped**2 > apart**2
    losses = 0.5 * np.where(is_clipped, apart_clipped, apart) ** 2
    # Where the clipped value counts and is no more the value itself, it does not change with it.
    by_value = np.where(is_clipped & (clipped != values), 0.0, np.where(is_clipped, apart_clipped, apart))
    return ValueLoss(losses, by_value)
