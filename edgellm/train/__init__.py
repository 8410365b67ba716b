"""Training where the model runs: examples from files, learning, and what comes of it.

`edgellm.train(model, data, ...)` trains an adapter; see `run.train`. The folder is its own front door, so that this
name means the same whether or not something has been imported from it before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from edgellm.train.run import train  # here, for settings are read where nothing is trained

        return train(*arguments, **keywords)


sys.modules[__name__].__class__ = _Train
