"""Tiny mixtures with random adapters beside their experts, as PEFT makes and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import peft_models

PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
# Of each family a linear, so that adapters stand beside both kinds.
LINEARS = {"lfm2moe": "out_proj"}


def save_adapter(folder: Path, family: str, name: str, seed: int = 0, **settings: Any) -> Any:
    """As `peft_models.save_adapter`: beside all experts and a linear, unless the settings say otherwise."""
    usual: dict[str, Any] = {
        "target_modules": [LINEARS.get(family, "o_proj")], "target_parameters": PARAMETERS,
        "rank_pattern": {r".*\.gate_up_proj": 6}, "alpha_pattern": {"down_proj": 3},
    }  # fmt: skip
    return peft_models.save_adapter(folder, name, seed, **(usual | settings))
