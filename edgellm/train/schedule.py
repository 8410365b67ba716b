"""The learning rate of every step: a warm-up in a line from 0, then a way down.

Steps count from 0, and the values are those of the schedules of the same names in transformers: with a warm-up, the
rate of step 0 is 0.
"""

from __future__ import annotations

import math

from edgellm.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, n_steps: int) -> float:
    """The learning rate with which step `step` of `n_steps` changes the weights."""
    return config.learning_rate * _factor(config.schedule, step, n_steps, config.warmup_steps(n_steps))


def _factor(schedule: str, step: int, n_steps: int, warmup: int) -> float:
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    way = max(1, n_steps - warmup)
    if schedule == "linear":
        return max(0.0, (n_steps - step) / way)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / way)))
