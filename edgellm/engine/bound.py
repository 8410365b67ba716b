"""What keys and values depend on beside the text: they are of no use to any other model, setting or version."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from edgellm._version import __version__
from edgellm.engine.layout import release_file_pages
from edgellm.engine.runner import Runner
from edgellm.formats.tensor import Tensor

SAMPLE_BYTES = 256  # of each tensor's beginning, middle and end


def fingerprint(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], tiled: Container[Tensor] = ()) -> str:
    """What a model is known by: its names, shapes and formats, and samples of every tensor, as hex.

    tiled:  tensors that are read as tiles, so that their own pages are let go at once.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr([(key, str(metadata[key])[:200]) for key in sorted(metadata)]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, tensor.shape, tensor.format.name)).encode())
        raw = np.asarray(tensor.raw).reshape(-1).view(np.uint8)
        for start in (0, len(raw) // 2, max(0, len(raw) - SAMPLE_BYTES)):
            digest.update(raw[start : start + SAMPLE_BYTES].tobytes())
        if tensor in tiled:
            release_file_pages([tensor])
    return digest.hexdigest()


def bound_to(runner: Runner) -> dict[str, Any]:
    """All that keys and values depend on, and states, beside the text."""
    states, model = runner.cache.states, fingerprint(runner.tensors, runner.metadata, runner.layout.tiles)
    return {
        "model": model,
        "version": __version__,
        "isa": runner.isa.name,
        "kv_type": runner.target.kv_type.name,
        "activations": runner.target.activations,
        "layers": [repr(layer) for layer in runner.cache.layers],
        **({} if states is None else {"states": repr(states.shape)}),
    }
