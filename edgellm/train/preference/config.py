"""The settings of each way to learn from preferences, named as in TRL, and their defaults once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.checks import flag, number, one_of, positive_number, take, texts, whole_number, wrong
from edgellm.errors import UsageError
from edgellm.train.config import LEAST_FACTOR, MOST_FACTOR

DPO_LOSSES = ("sigmoid", "hinge", "ipo")
# Of `TrainConfig`, what suits these ways better than its own defaults: they change a model that can answer already.
OFFLINE = {"learning_rate": 5e-5, "epochs": 1.0, "warmup": 0.1}
SAMPLED = {"learning_rate": 2e-5, "epochs": 1.0, "schedule": "constant"}
# Beyond these, a number cannot be meant: answers of a step are all in memory, and are old after so many updates.
MOST_ANSWERS, MOST_ITERATIONS = 4096, 10_000
GRPO_LOSSES = ("dapo", "grpo", "dr_grpo")


@dataclass(frozen=True)
class DpoConfig:
    """beta: how closely the model is held to the reference; label_smoothing: part of pairs that are the other way round
    (of sigmoid alone); loss_type: see `dpo`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss_type: str = "sigmoid"

    def __post_init__(self) -> None:
        take(self, "beta", positive_number, MOST_FACTOR, LEAST_FACTOR)
        take(self, "label_smoothing", number, 0, 0.5)
        take(self, "loss_type", one_of, DPO_LOSSES)
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise wrong("label_smoothing", self.label_smoothing, f"0, for a loss_type of {self.loss_type!r} has none")


@dataclass(frozen=True)
class KtoConfig:
    """beta: as in DPO. desirable_weight, undesirable_weight: of answers that are good, and of those that are not; they
    should balance how many there are of each.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        take(self, "beta", positive_number, MOST_FACTOR, LEAST_FACTOR)
        take(self, "desirable_weight", number, 0, MOST_FACTOR)
        take(self, "undesirable_weight", number, 0, MOST_FACTOR)
        if not self.desirable_weight and not self.undesirable_weight:
            raise UsageError(
                "desirable_weight and undesirable_weight are both 0, so no answer counts; expected one above 0",
                parameter="desirable_weight",
            )


@dataclass(frozen=True)
class OrpoConfig:
    """beta: how much preferring counts beside answering."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        take(self, "beta", positive_number, MOST_FACTOR, LEAST_FACTOR)


@dataclass(frozen=True)
class RewardConfig:
    """margin: by how much rewards should differ, where a pair does not say it itself (its `margin`).
    center_rewards: how strongly rewards are held around 0.
    """

    margin: float = 0.0
    center_rewards: float = 0.0

    def __post_init__(self) -> None:
        take(self, "margin", number, 0, MOST_FACTOR)
        take(self, "center_rewards", number, 0, MOST_FACTOR)


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are made to learn from. They are sampled as the model gives them, at a temperature of 1, so that what
    is learnt from is what it would say.

    num_generations: answers to each prompt.
    max_new_tokens:  of an answer.
    num_iterations:  updates of the weights from the same answers.
    clip_ratio:      a token counts no more where its probability has changed by more than this share.
    beta:            how much being far from the model without the adapter costs.
    """

    num_generations: int = 8
    max_new_tokens: int = 128
    num_iterations: int = 1
    clip_ratio: float = 0.2
    beta: float = 0.04

    def __post_init__(self) -> None:
        take(self, "num_generations", whole_number, 1, MOST_ANSWERS)
        take(self, "max_new_tokens", whole_number, 1)
        take(self, "num_iterations", whole_number, 1, MOST_ITERATIONS)
        take(self, "clip_ratio", positive_number, None, LEAST_FACTOR)
        take(self, "beta", number, 0, MOST_FACTOR)


@dataclass(frozen=True)
class RewardSources:
    """Where the rewards of a run come from; their sum counts.

    reward:        functions, as "module:function" or "file.py:function".
    reward_regex:  regular expressions: 1 where one is found in an answer, 0 where not.
    reward_model:  folders with reward models for the model that is trained.
    """

    reward: Sequence[str] = ()
    reward_regex: Sequence[str] = ()
    reward_model: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("reward", "reward_regex", "reward_model"):
            take(self, name, _several)


@dataclass(frozen=True)
class GrpoConfig(SamplingConfig):
    """loss_type: how losses of tokens are averaged, see `grpo`. scale_rewards: whether advantages are divided by the
    standard deviation of their group.
    """

    loss_type: str = "dapo"
    scale_rewards: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        take(self, "num_generations", whole_number, 2, MOST_ANSWERS)  # one answer has nothing to be compared with
        take(self, "loss_type", one_of, GRPO_LOSSES)
        take(self, "scale_rewards", flag)


@dataclass(frozen=True)
class PpoConfig(SamplingConfig):
    """gamma, lam: of the advantages, see `ppo`. clip_value: as clip_ratio, of values. vf_coef: what their loss counts
    beside that of the tokens.
    """

    num_generations: int = 1
    num_iterations: int = 4
    beta: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip_value: float = 0.2
    vf_coef: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        take(self, "gamma", number, 0, 1)
        take(self, "lam", number, 0, 1)
        take(self, "clip_value", positive_number, None, LEAST_FACTOR)
        take(self, "vf_coef", number, 0, MOST_FACTOR)


def _several(name: str, value: Any) -> tuple[str, ...]:
    return tuple(texts(name, [value] if isinstance(value, str) else value))
