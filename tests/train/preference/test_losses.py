"""Losses and their derivatives beside torch's autograd, from the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgellm.errors import UsageError
from edgellm.train.preference.bradley_terry import bradley_terry_loss
from edgellm.train.preference.config import (
    DpoConfig,
    GrpoConfig,
    KtoConfig,
    OrpoConfig,
    PpoConfig,
    RewardConfig,
    RewardSources,
)
from edgellm.train.preference.dpo import dpo_loss
from edgellm.train.preference.grpo import clipped_loss, group_advantages, token_weights
from edgellm.train.preference.kto import divergence, kto_loss
from edgellm.train.preference.likelihoods import Likelihoods
from edgellm.train.preference.orpo import orpo_loss
from edgellm.train.preference.ppo import general_advantages, token_rewards, value_loss, whitened

EXACT = {"rtol": 1e-9, "atol": 1e-12}
N = 40


def answers(seed: int, apart: float = 8.0) -> Likelihoods:
    """Of 1 to 30 tokens, each of a likelihood of its own."""
    random = np.random.default_rng(seed)
    n_tokens = random.integers(1, 30, N)
    policy = np.array([-random.gamma(1, 1.5, n).sum() for n in n_tokens])
    return Likelihoods(policy, policy + random.normal(0, apart, N), n_tokens.astype(float))


def torch_of(side: Likelihoods) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    policy, reference, n_tokens = (torch.from_numpy(x.copy()) for x in side)
    return policy.requires_grad_(), reference, n_tokens


def sigmoid_loss(d, _, config):
    e = config.label_smoothing
    return -F.logsigmoid(config.beta * d) * (1 - e) - F.logsigmoid(-config.beta * d) * e


DPO: list[tuple[DpoConfig, Callable]] = [
    (DpoConfig(), sigmoid_loss),
    (DpoConfig(beta=0.7, label_smoothing=0.2), sigmoid_loss),
    (DpoConfig(loss_type="hinge", beta=0.3), lambda d, _, config: torch.relu(1 - config.beta * d)),
    (DpoConfig(loss_type="ipo", beta=0.3), lambda _, d, config: (d - 1 / (2 * config.beta)) ** 2),
]


@pytest.mark.parametrize(("config", "formula"), DPO, ids=lambda x: getattr(x, "loss_type", ""))
def test_dpo(config: DpoConfig, formula: Callable) -> None:
    chosen, rejected = answers(1), answers(2)
    found = dpo_loss(chosen, rejected, config)
    (pc, rc, nc), (pr, rr, nr) = torch_of(chosen), torch_of(rejected)
    expected = formula((pc - rc) - (pr - rr), (pc - rc) / nc - (pr - rr) / nr, config)
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_chosen, pc.grad, **EXACT)
    np.testing.assert_allclose(found.by_rejected, pr.grad, **EXACT)
    np.testing.assert_allclose(found.chosen_rewards, config.beta * (pc - rc).detach(), **EXACT)
    np.testing.assert_allclose(found.rejected_rewards, config.beta * (pr - rr).detach(), **EXACT)


def test_dpo_far_from_the_reference() -> None:
    """Where exponentials leave float64."""
    side = Likelihoods(np.array([-1e5, 0.0]), np.array([0.0, -1e5]), np.ones(2))
    other = Likelihoods(np.zeros(2), np.zeros(2), np.ones(2))
    found = dpo_loss(side, other, DpoConfig(beta=1))
    np.testing.assert_allclose(found.losses, [1e5, 0])
    np.testing.assert_allclose(found.by_chosen, [-1, 0])


@pytest.mark.parametrize("config", [KtoConfig(), KtoConfig(0.4, 1.3, 0.6)])
@pytest.mark.parametrize("apart", [-3.0, 3.0])
def test_kto(config: KtoConfig, apart: float) -> None:
    side, good = answers(3), np.random.default_rng(4).random(N) < 0.5
    mismatched = answers(5)
    mismatched = mismatched._replace(reference=mismatched.policy - apart)
    z = divergence(mismatched)
    assert z == pytest.approx(max(0.0, apart))
    found = kto_loss(side, good, z, config)
    policy, reference, _ = torch_of(side)
    r = policy - reference
    desirable = config.desirable_weight * (1 - torch.sigmoid(config.beta * (r - z)))
    undesirable = config.undesirable_weight * (1 - torch.sigmoid(config.beta * (z - r)))
    expected = torch.where(torch.from_numpy(good), desirable, undesirable)
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_answer, policy.grad, **EXACT)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_orpo(beta: float) -> None:
    chosen, rejected = answers(6), answers(7)
    found = orpo_loss(chosen, rejected, OrpoConfig(beta))
    (pc, _, nc), (pr, _, nr) = torch_of(chosen), torch_of(rejected)
    odds = [torch.exp(p / n) / (1 - torch.exp(p / n)) for p, n in ((pc, nc), (pr, nr))]
    expected = -pc / nc - beta * F.logsigmoid(torch.log(odds[0] / odds[1]))
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_chosen, pc.grad, **EXACT)
    np.testing.assert_allclose(found.by_rejected, pr.grad, **EXACT)


def test_orpo_of_an_answer_that_is_certain_is_a_number() -> None:
    certain = Likelihoods(np.zeros(1), np.zeros(1), np.ones(1))
    found = orpo_loss(certain, answers(1)._replace(**{k: v[:1] for k, v in answers(1)._asdict().items()}), OrpoConfig())
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("config", [RewardConfig(), RewardConfig(center_rewards=0.01)])
def test_bradley_terry(config: RewardConfig) -> None:
    random = np.random.default_rng(8)
    chosen, rejected, margins = (random.normal(0, 3, N) for _ in range(3))
    found = bradley_terry_loss(chosen, rejected, margins, config)
    c, r = (torch.from_numpy(x.copy()).requires_grad_() for x in (chosen, rejected))
    expected = -F.logsigmoid(c - r - torch.from_numpy(margins)) + config.center_rewards * (c + r) ** 2
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_chosen, c.grad, **EXACT)
    np.testing.assert_allclose(found.by_rejected, r.grad, **EXACT)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_clipped_objective(beta: float) -> None:
    random = np.random.default_rng(9)
    policy, advantages = -random.gamma(1, 1, 400), random.normal(0, 1, 400)
    old, reference = policy + random.normal(0, 0.3, 400), policy + random.normal(0, 1, 400)
    found = clipped_loss(policy, old, reference if beta else None, advantages, 0.2, beta)
    p = torch.from_numpy(policy.copy()).requires_grad_()
    o, r, a = map(torch.from_numpy, (old, reference, advantages))
    ratio = torch.exp(p - o)
    expected = -torch.min(ratio * a, torch.clamp(ratio, 0.8, 1.2) * a)
    expected = expected + beta * (torch.exp(r - p) - (r - p) - 1)
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_token, p.grad, **EXACT)
    assert 0.05 < found.is_clipped.mean() < 0.5
    assert (found.divergences >= 0).all()


def test_advantages_of_groups() -> None:
    rewards = np.random.default_rng(10).normal(2, 3, (5, 8))
    t = torch.from_numpy(rewards)
    expected = (t - t.mean(1, keepdim=True)) / (t.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards), expected, **EXACT)
    np.testing.assert_allclose(group_advantages(rewards, scale=False), t - t.mean(1, keepdim=True), **EXACT)
    assert (group_advantages(np.ones((2, 4))) == 0).all()


@pytest.mark.parametrize(("loss_type", "expected"), [
    ("grpo", lambda x, n: np.mean([part.mean() for part in np.split(x, np.cumsum(n)[:-1])])),
    ("dapo", lambda x, n: x.mean()),
    ("dr_grpo", lambda x, n: x.sum() / (len(n) * 50)),
])  # fmt: skip
def test_means_over_tokens(loss_type: str, expected: Callable) -> None:
    random = np.random.default_rng(11)
    n_tokens = random.integers(1, 50, 12)
    losses = random.normal(0, 1, n_tokens.sum())
    weights = token_weights(n_tokens.astype(float), 50, loss_type)
    assert np.dot(np.repeat(weights, n_tokens), losses) == pytest.approx(expected(losses, n_tokens))


def test_general_advantages_are_sums_of_all_that_follows() -> None:
    """By the definition: the sum of (gamma lambda)^l delta_t+l."""
    random = np.random.default_rng(12)
    rewards, values = random.normal(0, 1, 9), random.normal(0, 1, 9)
    after = np.append(values[1:], 0)
    delta = rewards + 0.9 * after - values
    expected = [sum((0.9 * 0.8) ** k * delta[t + k] for k in range(9 - t)) for t in range(9)]
    np.testing.assert_allclose(general_advantages(rewards, values, 0.9, 0.8), expected, **EXACT)


def test_rewards_of_tokens() -> None:
    policy, reference = np.array([-1.0, -2.0]), np.array([-1.5, -1.0])
    np.testing.assert_allclose(token_rewards(3.0, policy, reference, 0.5), [-0.25, 3.5])


def test_value_loss() -> None:
    random = np.random.default_rng(13)
    values, returns = random.normal(0, 1, 300), random.normal(0, 1, 300)
    old = values + random.normal(0, 0.3, 300)
    found = value_loss(values, old, returns, 0.2)
    v = torch.from_numpy(values.copy()).requires_grad_()
    o, r = torch.from_numpy(old), torch.from_numpy(returns)
    expected = 0.5 * torch.max((v - r) ** 2, (torch.clamp(v, o - 0.2, o + 0.2) - r) ** 2)
    expected.sum().backward()
    np.testing.assert_allclose(found.losses, expected.detach(), **EXACT)
    np.testing.assert_allclose(found.by_value, v.grad, **EXACT)


def test_whitened() -> None:
    x = whitened(np.random.default_rng(14).normal(5, 3, 200))
    assert abs(x.mean()) < 1e-9 and abs(x.std() - 1) < 1e-6


@pytest.mark.parametrize(("kind", "settings", "text"), [
    (DpoConfig, {"beta": 0}, "beta is 0.0; expected a number above 0"),
    (DpoConfig, {"beta": 1e-320}, "beta is 1e-320; expected a number of at least 1e-06"),
    (OrpoConfig, {"beta": 1e300}, "beta is 1e+300; expected a number above 0, up to 1e+06"),
    (RewardConfig, {"center_rewards": 1e300}, "center_rewards is 1e+300; expected a number from 0 to 1000000.0"),
    (PpoConfig, {"vf_coef": 1e300}, "vf_coef is 1e+300; expected a number from 0 to 1000000.0"),
    (RewardSources, {"reward_regex": {"a": 1}}, "reward_regex is {'a': 1}; expected a list of texts"),
    (DpoConfig, {"loss_type": "exo"}, "loss_type is 'exo'; expected one of sigmoid, hinge, ipo"),
    (DpoConfig, {"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing is 0.1; expected 0"),
    (KtoConfig, {"desirable_weight": 0, "undesirable_weight": 0}, "desirable_weight and undesirable_weight are both 0"),
    (KtoConfig, {"desirable_weight": -1}, "desirable_weight is -1.0"),
    (OrpoConfig, {"beta": float("nan")}, "beta is nan"),
    (RewardConfig, {"margin": -1}, "margin is -1.0"),
    (GrpoConfig, {"num_generations": 1}, "num_generations is 1; expected a number of at least 2"),
    (GrpoConfig, {"loss_type": "ppo"}, "loss_type is 'ppo'"),
    (PpoConfig, {"gamma": 1.5}, "gamma is 1.5"),
])  # fmt: skip
def test_settings_that_cannot_be(kind: type, settings: dict, text: str) -> None:
    with pytest.raises(UsageError) as error:
        kind(**settings)
    assert str(error.value).startswith(text)
