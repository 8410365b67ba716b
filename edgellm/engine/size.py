"""How much memory a loaded model may come to take."""

from __future__ import annotations

from edgellm.engine.model import Model


def bytes_of(model: Model) -> int:
    """Its weights, which the system keeps as far as there is room, and the whole of its cache. UsageError if closed."""
    runner = vars(model).get("_runner")  # which a model that writes nothing has not
    return model._file.n_bytes + (runner.cache.n_bytes if runner is not None else 0)
