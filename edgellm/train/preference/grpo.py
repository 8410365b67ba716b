"""Group relative policy optimization (Shao et al., 2024: DeepSeekMath), and the clipped objective that it takes from
PPO (Schulman et al., 2017, equation 7).

For each prompt a group of answers is sampled. The advantage of an answer is its reward, less the mean of its group,
by the standard deviation of the group. With the ratio w = p / p_old of each token and its advantage A, a token's loss:

    -min(w A, clip(w, 1 - epsilon, 1 + epsilon) A) + beta (p_ref / p - log(p_ref / p) - 1)

The second part estimates how far the model is from the reference, at a low variance and never below 0 (Schulman, 2020:
k3). Losses of tokens are averaged as `loss_type` says:

    dapo     over all tokens of the batch, so that each counts alike (Yu et al., 2025)
    grpo     over the tokens of each answer, and then over answers, as in the paper
    dr_grpo  a sum over all tokens by the longest that answers may be, times answers (Liu et al., 2025)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgellm.train.preference.numbers import Floats

STEADY = 1e-4  # beside a standard deviation, for groups whose rewards hardly differ


class TokenLoss(NamedTuple):
    """Of n tokens, float64 [n]: losses, derivatives by the log-likelihood of each, and how far from the reference."""

    losses: Floats
    by_token: Floats
    divergences: Floats
    is_clipped: Floats


def group_advantages(rewards: Floats, scale: bool = True) -> Floats:
    """float64 [n_prompts, group]: rewards less the mean of their group, by its standard deviation where `scale`."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if not scale:
        return np.asarray(centred)
    return np.asarray(centred / (rewards.std(axis=1, ddof=1, keepdims=True) + STEADY))


def clipped_loss(
    policy: Floats, old: Floats, reference: Floats | None, advantages: Floats, epsilon: float, beta: float
) -> TokenLoss:
    """The loss of tokens, from their log-likelihoods now, when they were sampled, and by the reference.

    reference: None for no part of the reference in the loss.
    """
    ratio = np.exp(policy - old)
    clipped = np.clip(ratio, 1 - epsilon, 1 + epsilon)
    is_clipped = clipped * advantages < ratio * advantages
    losses = -np.where(is_clipped, clipped, ratio) * advantages
    by_token = np.where(is_clipped, 0.0, -ratio * advantages)
    divergences = np.zeros_like(policy)
    if reference is not None:
        d = reference - policy
        divergences = np.expm1(d) - d
        losses = losses + beta * divergences
        by_token = by_token - beta * np.expm1(d)
    return TokenLoss(losses, by_token, divergences, is_clipped.astype(np.float64))


def token_weights(n_tokens: Floats, longest: int, loss_type: str) -> Floats:
    """What each token of an answer counts in the mean over a batch: float64 [n], for answers of so many tokens."""
    if loss_type == "grpo":
        return np.asarray(1 / (len(n_tokens) * n_tokens))
    total = n_tokens.sum() if loss_type == "dapo" else longest * len(n_tokens)
    return np.full(len(n_tokens), 1 / total)
