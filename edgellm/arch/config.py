"""Hyperparameters, parsed once from a file's metadata and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value

# Far above any real model, far below what would exhaust memory before the file's size is looked at.
MOST_LAYERS = 4096
_LIMITS = {
    "block_count": MOST_LAYERS,
    "attention.head_count": 4096,
    "embedding_length": 1 << 20,
    "context_length": 1 << 32,
    "feed_forward_length": 1 << 24,
    "attention.key_length": 1 << 14,
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Lengths count tokens (n_ctx_train) or floats; windows count positions.

    rope_base:         the wavelength base of rotary embedding; rope_base_local that of sliding layers, if another.
    rope_scale:        positions are divided by it (linear scaling).
    attention_scale:   what the products of queries and keys are multiplied by.
    windows:           for each layer, the positions it looks back over; None where it sees everything.
    """

    architecture: str
    n_ctx_train: int
    n_embd: int
    n_layers: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_rot: int
    epsilon: float
    rope_base: float
    attention_scale: float
    windows: tuple[int | None, ...]
    rope_scale: float = 1.0
    rope_base_local: float | None = None


class Keys:
    """Typed look-ups of `ARCH.name` in a file's metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture = get_value(metadata, "general.architecture", str)

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        key = f"{self.architecture}.{name}"
        if default is not None and key not in self.metadata:
            return default
        value = get_value(self.metadata, key, int)
        if not least <= value <= _LIMITS.get(name, 1 << 32):
            raise FormatError(f"{key} is {value}; expected a number from {least} to {_LIMITS.get(name, 1 << 32)}")
        return value

    def number(self, name: str, default: float | None = None, zero: float | None = None) -> float:
        """A positive, finite number; `zero` is what 0 means where it means something."""
        key = f"{self.architecture}.{name}"
        if default is not None and key not in self.metadata:
            return default
        value = get_value(self.metadata, key, float)
        if value == 0 and zero is not None:
            return zero
        if not (math.isfinite(value) and value > 0):
            raise FormatError(f"{key} is {value}; expected a positive number")
        return value

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def windows(self, n_layers: int, default_period: int = 0) -> tuple[int | None, ...]:
        """How far each layer looks back: `attention.sliding_window`, in the layers that its `_pattern` names.

        A window of 0 is none. The pattern is a bool for every layer, or n: every n-th layer sees everything (0: none
        does).
        """
        window = self.count("attention.sliding_window", 0, least=0)
        if not window:
            return (None,) * n_layers
        key = f"{self.architecture}.attention.sliding_window_pattern"
        pattern = self.metadata.get(key, default_period)
        flags = np.asarray(pattern)
        if flags.dtype == np.bool_ and flags.shape == (n_layers,):
            slides = flags.tolist()
        elif isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
            slides = [not pattern or (layer + 1) % pattern != 0 for layer in range(n_layers)]
        else:
            raise FormatError(f"{key} is {pattern!r:.60}; expected a number, or a bool for each of {n_layers} layers")
        return tuple(window if slide else None for slide in slides)


def decoder_config(metadata: Mapping[str, Any], **more: Any) -> ModelConfig:
    """The hyperparameters that all decoders share; `more` replaces what a family has otherwise.

    Raises FormatError or UnsupportedError naming the key.
    """
    keys = Keys(metadata)
    _refuse_unsupported(keys)
    n_embd, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    n_kv_heads = keys.count("attention.head_count_kv", n_heads)
    head_dim = keys.count("attention.key_length", max(1, n_embd // n_heads))
    if keys.count("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{keys.architecture}.attention.value_length differs from key_length {head_dim}")
    if n_heads % n_kv_heads:
        raise FormatError(f"{n_heads} attention heads cannot share {n_kv_heads} key-value heads evenly")
    n_rot = keys.count("rope.dimension_count", head_dim)
    if n_rot % 2 or n_rot > head_dim:
        raise FormatError(
            f"{keys.architecture}.rope.dimension_count is {n_rot}; expected an even number up to {head_dim}"
        )
    n_layers = keys.count("block_count")
    shape: dict[str, Any] = {
        "architecture": keys.architecture,
        "n_ctx_train": keys.count("context_length"),
        "n_embd": n_embd,
        "n_layers": n_layers,
        "n_ff": keys.count("feed_forward_length"),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "n_rot": n_rot,
        "epsilon": _epsilon(keys),
        "rope_base": keys.number("rope.freq_base", 10000.0),
        "rope_scale": _linear_rope_scale(keys),
        "attention_scale": keys.number("attention.scale", 1 / math.sqrt(head_dim), zero=1 / math.sqrt(head_dim)),
        "windows": keys.windows(n_layers),
    }
    return ModelConfig(**(shape | more))


def _epsilon(keys: Keys) -> float:
    """That of root mean square norms, or of layer norms where a family has those."""
    rms, layer = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    return keys.number(layer if keys.has(layer) and not keys.has(rms) else rms)


def _linear_rope_scale(keys: Keys) -> float:
    """By what positions are divided.

    As in llama.cpp, a factor of 0 is none, and without a factor no type scales anything.
    """
    name = "rope.scaling.factor" if keys.has("rope.scaling.factor") else "rope.scale_linear"  # as files of 2023 say it
    factor = keys.number(name, 1.0, zero=1.0)
    if factor == 1:
        return 1.0
    kind_key = f"{keys.architecture}.rope.scaling.type"
    kind = get_value(keys.metadata, kind_key, str, "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"rope scaling of type {kind!r:.60} ({kind_key}); edgellm supports 'linear'")
    return factor if kind == "linear" else 1.0


def _refuse_unsupported(keys: Keys) -> None:
    """Features that would change the forward pass and that no family here has.

    A count of experts that is no number is passed over: their tensors would have no place.
    """
    n_experts = keys.metadata.get(f"{keys.architecture}.expert_count")
    if isinstance(n_experts, int) and n_experts > 0:
        raise UnsupportedError(f"a mixture of experts ({keys.architecture}.expert_count); edgellm runs dense models")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if keys.has(name) and get_value(keys.metadata, f"{keys.architecture}.{name}", float) != 0:
            raise UnsupportedError(f"soft-capped logits ({keys.architecture}.{name})")
    heads = keys.metadata.get(f"{keys.architecture}.attention.head_count")
    if heads is not None and not isinstance(heads, int):
        raise UnsupportedError(f"layers of different shapes ({keys.architecture}.attention.head_count is an array)")
