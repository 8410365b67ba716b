"""Which task learns as a parameter object says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgellm.checks import wrong
from edgellm.errors import UsageError
from edgellm.train.preference.config import DpoConfig, KtoConfig, OrpoConfig, RewardConfig, SamplingConfig
from edgellm.train.preference.offline import Offline
from edgellm.train.preference.online import Online
from edgellm.train.preference.reward_learner import RewardTask
from edgellm.train.preference.rewards import reward_of
from edgellm.train.task import Task


def task_of(how: Any, rewards: Any = ()) -> Task | None:
    """The task of a parameter object, None for None. rewards: one or several, for what learns from rewards.

    Raises UsageError for rewards that are missing, or that nobody asks for.
    """
    several = rewards if isinstance(rewards, Iterable) and not isinstance(rewards, (str, Mapping)) else [rewards]
    found = [reward_of(reward) for reward in several]
    if isinstance(how, SamplingConfig):
        if not found:
            raise UsageError("rewards is empty; expected at least one function, pattern or reward model")
        return Online(how, found)
    if found:
        raise UsageError("rewards are for GrpoConfig and PpoConfig alone; leave them out", parameter="rewards")
    if how is None:
        return None
    if isinstance(how, RewardConfig):
        return RewardTask(how)
    if isinstance(how, (DpoConfig, KtoConfig, OrpoConfig)):
        return Offline(how)
    raise wrong("how", how, "a DpoConfig, KtoConfig, OrpoConfig, RewardConfig, GrpoConfig or PpoConfig")
