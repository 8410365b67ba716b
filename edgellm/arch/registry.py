"""The families that edgellm runs, by the name that `general.architecture` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.arch import gemma3, llama
from edgellm.arch.config import ModelConfig
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import get_value
from edgellm.graph import Graph, Value


@dataclass(frozen=True)
class Architecture:
    """A family: how to read its hyperparameters, and its two programs.

    body:  token ids to hidden states. head: hidden states of the wanted tokens to logits.
    """

    configure: Callable[[Mapping[str, Any]], ModelConfig]
    body: Callable[[Graph, Weights, ModelConfig], Value]
    head: Callable[[Graph, Weights, ModelConfig, Value], Value]


ARCHITECTURES = {
    "llama": Architecture(llama.configure, llama.body, llama.head),
    "gemma3": Architecture(gemma3.configure, gemma3.body, gemma3.head),
}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """The family of a file. Raises UnsupportedError naming one that edgellm does not run."""
    name = get_value(metadata, "general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"the model's architecture is {name!r:.60}; edgellm runs: {known}")
    return ARCHITECTURES[name]
