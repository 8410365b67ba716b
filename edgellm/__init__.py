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
    from edgellm.convert.checkpoints import convert_checkpoint
    from edgellm.convert.export import export_checkpoint
    from edgellm.convert.measured import quantize_to_budget
    from edgellm.convert.quantize import quantize_file
    from edgellm.engine import Generation, GenerationStats, Model, load, load_tokenizer
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
        TemplateError,
        UnsupportedError,
        UsageError,
    )
    from edgellm.hub import pull
    from edgellm.params import RuntimeConfig, SamplingParams

__all__ = [
    "BusyError",
    "CacheFullError",
    "ContextOverflowError",
    "DownloadError",
    "EdgellmError",
    "FileProblem",
    "FormatError",
    "Generation",
    "GenerationStats",
    "HashMismatchError",
    "KernelError",
    "MemoryLimitError",
    "Model",
    "RuntimeConfig",
    "SamplingParams",
    "TemplateError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "convert_checkpoint",
    "export_checkpoint",
    "load",
    "load_tokenizer",
    "pull",
    "quantize_file",
    "quantize_to_budget",
]

# Where each name lives; the rest of `__all__` are errors.
_HOMES = {
    "convert_checkpoint": "edgellm.convert.checkpoints",
    "export_checkpoint": "edgellm.convert.export",
    "quantize_file": "edgellm.convert.quantize",
    "quantize_to_budget": "edgellm.convert.measured",
    "Generation": "edgellm.engine",
    "GenerationStats": "edgellm.engine",
    "Model": "edgellm.engine",
    "load": "edgellm.engine",
    "load_tokenizer": "edgellm.engine",
    "pull": "edgellm.hub",
    "RuntimeConfig": "edgellm.params",
    "SamplingParams": "edgellm.params",
}


if not TYPE_CHECKING:  # type checkers know the names from above, and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES.get(name, "edgellm.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
