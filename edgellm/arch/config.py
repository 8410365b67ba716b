"""Hyperparameters, parsed once from a file's metadata and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value

# Far above any real model, far below what would exhaust memory before the file's size is looked at.
_LIMITS = {
    "block_count": 4096,
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
    window:            positions that sliding layers look back over; None where all layers see everything.
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
    rope_scale: float = 1.0
    rope_base_local: float | None = None
    window: int | None = None

    @property
    def attention_scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


class Keys:
    """Typed look-ups of `ARCH.name` in a file's metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture = get_value(metadata, "general.architecture", str)

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        key = f"{self.architecture}.{name}"
        if default is not None and key not in self.metadata:
            return default
        value = get_value(self.metadata, key, int)
        if not 1 <= value <= _LIMITS.get(name, 1 << 32):
            raise FormatError(f"{key} is {value}; expected a number from 1 to {_LIMITS.get(name, 1 << 32)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive, finite number."""
        key = f"{self.architecture}.{name}"
        if default is not None and key not in self.metadata:
            return default
        value = get_value(self.metadata, key, float)
        if not (math.isfinite(value) and value > 0):
            raise FormatError(f"{key} is {value}; expected a positive number")
        return value


def decoder_config(metadata: Mapping[str, Any], **more: Any) -> ModelConfig:
    """The hyperparameters that all decoders share. Raises FormatError or UnsupportedError naming the key."""
    keys = Keys(metadata)
    _refuse_unsupported(keys)
    n_embd, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    n_kv_heads = keys.count("attention.head_count_kv", n_heads)
    head_dim = keys.count("attention.key_length", max(1, n_embd // n_heads))
    if keys.count("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{keys.architecture}.attention.value_length differs from key_length {head_dim}")
    if n_heads % n_kv_heads:
        raise FormatError(f"{n_heads} attention heads cannot share {n_kv_heads} key-value heads evenly")
    if head_dim % 16:
        raise UnsupportedError(f"attention heads of {head_dim} dimensions; edgellm runs multiples of 16")
    n_rot = keys.count("rope.dimension_count", head_dim)
    if n_rot % 2 or n_rot > head_dim:
        raise FormatError(
            f"{keys.architecture}.rope.dimension_count is {n_rot}; expected an even number up to {head_dim}"
        )
    return ModelConfig(
        architecture=keys.architecture,
        n_ctx_train=keys.count("context_length"),
        n_embd=n_embd,
        n_layers=keys.count("block_count"),
        n_ff=keys.count("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_rot=n_rot,
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        rope_base=keys.number("rope.freq_base", 10000.0),
        rope_scale=_linear_rope_scale(keys),
        **more,
    )


def _linear_rope_scale(keys: Keys) -> float:
    if _has(keys, "rope.scale_linear"):  # as files of 2023 say it
        return keys.number("rope.scale_linear")
    kind_key = f"{keys.architecture}.rope.scaling.type"
    kind = get_value(keys.metadata, kind_key, str, "none" if not _has(keys, "rope.scaling.factor") else "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise UnsupportedError(f"rope scaling of type {kind!r:.60} ({kind_key}); edgellm supports 'linear'")
    return keys.number("rope.scaling.factor")


def _refuse_unsupported(keys: Keys) -> None:
    """Features that would change the forward pass and that no family here has."""
    if get_value(keys.metadata, f"{keys.architecture}.expert_count", int, 0) > 0:
        raise UnsupportedError(f"a mixture of experts ({keys.architecture}.expert_count); edgellm runs dense models")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if _has(keys, name) and get_value(keys.metadata, f"{keys.architecture}.{name}", float) != 0:
            raise UnsupportedError(f"soft-capped logits ({keys.architecture}.{name})")
    heads = keys.metadata.get(f"{keys.architecture}.attention.head_count")
    if heads is not None and not isinstance(heads, int):
        raise UnsupportedError(f"layers of different shapes ({keys.architecture}.attention.head_count is an array)")


def _has(keys: Keys, name: str) -> bool:
    return f"{keys.architecture}.{name}" in keys.metadata
