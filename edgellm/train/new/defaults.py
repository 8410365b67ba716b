"""Settings of training that suit a model which begins with random weights, where they differ from the usual ones.

Averages and decay are those of GPT-3 (Brown et al., 2020), and the learning rate is near that of its smallest models.
"""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 16,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "validation": 0.05,
}
