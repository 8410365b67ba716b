"""Learning rates, beside those of transformers."""

from __future__ import annotations

import warnings

import pytest

from edgellm.train.config import SCHEDULES, TrainConfig
from edgellm.train.schedule import learning_rate


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("n_steps", "warmup"), [(1, 0), (7, 0), (20, 5), (20, 1), (13, 13), (5, 9), (100, 0.1), (9, 0.1)]
)
def test_every_step_is_as_in_transformers(schedule: str, n_steps: int, warmup: float) -> None:
    torch = pytest.importorskip("torch")
    get_scheduler = pytest.importorskip("transformers").get_scheduler
    config = TrainConfig(learning_rate=3e-4, schedule=schedule, warmup=warmup)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    reference = get_scheduler(name, optimizer, config.warmup_steps(n_steps), n_steps)
    for step in range(n_steps + 2):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(config, step, n_steps) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
            reference.step()


@pytest.mark.parametrize(
    ("warmup", "n_steps", "expected"),
    [(0, 50, 0), (0.1, 50, 5), (0.03, 30, 0), (0.999, 10, 9), (1, 10, 1), (500, 10, 500)],
)
def test_a_warm_up_is_a_share_or_a_count(warmup: float, n_steps: int, expected: int) -> None:
    assert TrainConfig(warmup=warmup).warmup_steps(n_steps) == expected


@pytest.mark.parametrize(
    ("settings", "n_batches", "expected"),
    [({}, 10, 30), ({"epochs": 0.5}, 10, 5), ({"epochs": 0.1}, 30, 3), ({"epochs": 0.01}, 10, 1),
     ({"epochs": 1.05}, 10, 11), ({"steps": 7}, 10, 7), ({"steps": 700, "epochs": 1}, 10, 700)],
)  # fmt: skip
def test_steps_of_a_run(settings, n_batches: int, expected: int) -> None:
    assert TrainConfig(**settings).n_steps(n_batches) == expected
