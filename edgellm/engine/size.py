"""How much memory a loaded model may come to take."""

from __future__ import annotations

from edgellm.engine.model import Model


def bytes_of(model: Model) -> int:
    """Its weights, which the system keeps as far as there is room, and the whole of its cache. UsageError if closed."""
    return model._file.n_bytes + model._runner.cache.n_bytes
