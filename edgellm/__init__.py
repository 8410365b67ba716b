"""Run, convert and adapt language models on a laptop's CPU.

    import edgellm

    edgellm.pull("smollm2-135m")
    with edgellm.load("smollm2-135m") as model:
        for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}]):
            print(piece, end="", flush=True)

Every name is imported when it is first used, so that `import edgellm` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgellm._version import __version__

if TYPE_CHECKING:
    from edgellm.agent.loop import ToolRun, run_tools
    from edgellm.convert.checkpoints import convert_checkpoint
    from edgellm.convert.export import export_checkpoint
    from edgellm.convert.measured import quantize_to_budget
    from edgellm.convert.merge import merge_adapters
    from edgellm.convert.pulling import pull
    from edgellm.convert.quantize import quantize_file
    from edgellm.engine import Generation, GenerationStats, Model, TokenLogprobs, load, load_tokenizer
    from edgellm.errors import (
        BusyError,
        CacheFullError,
        ContextOverflowError,
        DownloadError,
        EdgellmError,
        FileProblem,
        FormatError,
        HashMismatchError,
        KernelError,
        MemoryLimitError,
        RewardError,
        TemplateError,
        TrainingError,
        UnsupportedError,
        UsageError,
    )
    from edgellm.formats.adapters import Adapter
    from edgellm.params import RuntimeConfig, SamplingParams
    from edgellm.train.config import FullConfig, LoraConfig, TrainConfig
    from edgellm.train.data.config import DataConfig
    from edgellm.train.preference.config import (
        DpoConfig,
        GrpoConfig,
        KtoConfig,
        OrpoConfig,
        PpoConfig,
        RewardConfig,
    )
    from edgellm.train.preference.reward_model import RewardModel
    from edgellm.train.run import train

__all__ = [
    "Adapter",
    "BusyError",
    "CacheFullError",
    "ContextOverflowError",
    "DataConfig",
    "DownloadError",
    "DpoConfig",
    "EdgellmError",
    "FileProblem",
    "FormatError",
    "FullConfig",
    "Generation",
    "GenerationStats",
    "GrpoConfig",
    "HashMismatchError",
    "KernelError",
    "KtoConfig",
    "LoraConfig",
    "MemoryLimitError",
    "Model",
    "OrpoConfig",
    "PpoConfig",
    "RewardConfig",
    "RewardError",
    "RewardModel",
    "RuntimeConfig",
    "SamplingParams",
    "TemplateError",
    "TokenLogprobs",
    "ToolRun",
    "TrainConfig",
    "TrainingError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "convert_checkpoint",
    "export_checkpoint",
    "load",
    "load_tokenizer",
    "merge_adapters",
    "pull",
    "quantize_file",
    "quantize_to_budget",
    "run_tools",
    "train",
]

# Where each name lives; the rest of `__all__` are errors.
_HOMES = {
    "Adapter": "edgellm.formats.adapters",
    "convert_checkpoint": "edgellm.convert.checkpoints",
    "merge_adapters": "edgellm.convert.merge",
    "export_checkpoint": "edgellm.convert.export",
    "quantize_file": "edgellm.convert.quantize",
    "quantize_to_budget": "edgellm.convert.measured",
    "Generation": "edgellm.engine",
    "GenerationStats": "edgellm.engine",
    "Model": "edgellm.engine",
    "TokenLogprobs": "edgellm.engine",
    "ToolRun": "edgellm.agent.loop",
    "run_tools": "edgellm.agent.loop",
    "load": "edgellm.engine",
    "load_tokenizer": "edgellm.engine",
    "pull": "edgellm.convert.pulling",
    "RuntimeConfig": "edgellm.params",
    "SamplingParams": "edgellm.params",
    "DataConfig": "edgellm.train.data.config",
    "FullConfig": "edgellm.train.config",
    "LoraConfig": "edgellm.train.config",
    "TrainConfig": "edgellm.train.config",
    "RewardModel": "edgellm.train.preference.reward_model",
    **dict.fromkeys(
        ("DpoConfig", "GrpoConfig", "KtoConfig", "OrpoConfig", "PpoConfig", "RewardConfig"),
        "edgellm.train.preference.config",
    ),
}


if not TYPE_CHECKING:  # type checkers know the names from above, and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
        if name == "train":
            return importlib.import_module("edgellm.train")  # a folder that can be called
        value = getattr(importlib.import_module(_HOMES.get(name, "edgellm.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
