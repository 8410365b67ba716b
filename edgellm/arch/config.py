"""Hyperparameters, parsed once from a file's metadata and checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.arch.rope import NO_SCALING, RopeScaling, read_scaling
from edgellm.arch.style import ACTIVATIONS, LLAMA, Style
from edgellm.dataclass import dataclass
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value

if TYPE_CHECKING:
    from edgellm.arch.delta_net import DeltaNet
    from edgellm.arch.latent import Latent
    from edgellm.arch.mixture import Mixture
    from edgellm.arch.short_conv import ShortConv

# Keys that change the forward pass, and what they are where they change nothing. A family reads one if it fills the
# field of `ModelConfig` beside it; where there is none, no family here does.
_CHANGING: dict[str, tuple[str | None, tuple[float, ...]]] = {
    "embedding_scale": ("embedding_scale", (0, 1)),
    "residual_scale": ("residual_scale", (0, 1)),
    "logit_scale": ("logit_scale", (0, 1)),
    "attention.temperature_scale": ("temperature", (0,)),
    "attention.max_alibi_bias": ("max_alibi_bias", (0,)),
    "attention.clamp_kqv": (None, (0,)),
    "attention.output_scale": (None, (0, 1)),
    "router_logit_softcapping": (None, (0,)),
    "swiglu_clamp_exp": (None, (0,)),
    "swiglu_clamp_shexp": (None, (0,)),
    "rope.scaling.alpha": (None, (0, 1)),
    "rope.scaling.yarn_attn_factor": (None, (1,)),
}
# Far above any real model, far below what would exhaust memory before the file's size is looked at.
MOST_LAYERS = 4096
_LIMITS = {
    "block_count": MOST_LAYERS,
    "attention.head_count": 4096,
    "embedding_length": 1 << 20,
    "context_length": 1 << 32,
    "feed_forward_length": 1 << 24,
    "attention.key_length": 1 << 14,
    "attention.value_length": 1 << 14,
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Lengths count tokens (n_ctx_train) or floats; windows count positions.

    head_dim, value_dim:  how wide a head of queries and keys is, and one of values.
    n_rot:             dimensions of a head that are turned.
    rope_base:         the wavelength base of rotary embedding; rope_base_local that of sliding layers, if another.
    rope_scale:        positions are divided by it (linear scaling). scaling: this and all other kinds of it.
    mixture:           experts in place of a feed-forward; None where the family, or the file, has none.
    latent:            widths of latent attention; None where it is the ordinary one.
    attention_scale:   what the products of queries and keys are multiplied by.
    windows:           for each layer, the positions it looks back over; None where it sees everything.
    rotates:           for each layer, whether its queries and keys are turned at all.
    style:             what its layers are made of.
    n_ctx:             tokens of the context that it is run with; n_ctx_train until somebody says so.
    embedding_scale, residual_scale, logit_scale:  what embeddings, what a layer adds, and logits are multiplied by.
    attention_cap, logit_cap:  soft caps of scores and of logits, see `AttentionSpec`; None leaves them as they are.
    max_alibi_bias:    8 for slopes from 2**(-8 / n_heads) on (Press et al., 2021); 0 for none.
    temperature:       (beta, length): how queries grow with the position, see `Rotation`.
    n_shared_layers:   the last so many layers have no keys and values of their own.
    n_embd_per_layer:  how wide an embedding is that each layer has of its own; 0 for none.
    n_streams, active_stream:  streams of hidden states side by side, and which of them layers compute (Gemma 3n).
    sparsity:          by how many standard deviations a gate must be above the mean to count; None where all do.
    recurrent:         layers that keep a state in place of attention; None where the family has none.
    layers:            for each layer, what it has otherwise; empty where all are alike.
    """

    architecture: str
    n_ctx_train: int
    n_embd: int
    n_layers: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    n_rot: int
    epsilon: float
    rope_base: float
    attention_scale: float
    windows: tuple[int | None, ...]
    rotates: tuple[bool, ...]
    n_ctx: int
    rope_scale: float = 1.0
    rope_base_local: float | None = None
    scaling: RopeScaling = NO_SCALING
    style: Style = LLAMA
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    max_alibi_bias: float = 0.0
    temperature: tuple[float, int] | None = None
    mixture: Mixture | None = None
    latent: Latent | None = None
    n_shared_layers: int = 0
    n_embd_per_layer: int = 0
    layers: tuple[Mapping[str, Any], ...] = ()
    n_streams: int = 1
    active_stream: int = 0
    sparsity: float | None = None
    recurrent: ShortConv | DeltaNet | None = None

    def of_layer(self, layer: int) -> ModelConfig:
        """The shape as this layer has it."""
        return replace(self, **self.layers[layer]) if self.layers else self


class Keys:
    """Typed look-ups of `ARCH.name` in a file's metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture = get_value(metadata, "general.architecture", str)

    def count(self, name: str, default: int | None = None, least: int = 1, most: int = 1 << 32) -> int:
        """A whole number from `least` to `most`."""
        key = f"{self.architecture}.{name}"
        if default is not None and key not in self.metadata:
            return default
        value = get_value(self.metadata, key, int)
        most = _LIMITS.get(name, most)
        if not least <= value <= most:
            raise FormatError(f"{key} is {value}; expected a number from {least} to {most}")
        return value

    def counts(self, name: str, n_layers: int, default: int | None = None, least: int = 1) -> tuple[int, ...]:
        """A whole number for every layer, from `least` on: one for all, or an array."""
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray | list):
            return (self.count(name, default, least),) * n_layers
        found = np.asarray(value)
        most = _LIMITS.get(name, 1 << 32)
        if found.dtype.kind not in "iu" or found.shape != (n_layers,) or not ((found >= least) & (found <= most)).all():
            raise FormatError(
                f"{key} is {value!r:.60}; expected an integer from {least} to {most}, or {n_layers} of them"
            )
        return tuple(found.tolist())

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

    def cap(self, name: str, default: float | None = None) -> float | None:
        """A soft cap; None where there is none, or where it is 0."""
        if not self.has(name):
            return default
        return self.number(name, zero=0.0) or None

    def flag(self, name: str, default: bool) -> bool:
        return get_value(self.metadata, f"{self.architecture}.{name}", bool, default)

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def text(self, name: str, default: str) -> str:
        return get_value(self.metadata, f"{self.architecture}.{name}", str, default)

    def windows(self, n_layers: int, default_period: int = 0, default: int = 0) -> tuple[int | None, ...]:
        """How far each layer looks back: `attention.sliding_window`, in the layers that its `_pattern` names.

        A window of 0 is none. The pattern is a bool for every layer, or n: every n-th layer sees everything (0: none
        does).
        """
        window = self.count("attention.sliding_window", default, least=0)
        if not window:
            return (None,) * n_layers
        slides = self.layers("attention.sliding_window_pattern", n_layers, default_period)
        return tuple(window if slide else None for slide in slides)

    def layers(self, name: str, n_layers: int, default_period: int) -> tuple[bool, ...]:
        """A bool for every layer, or n: all but every n-th layer (0: all)."""
        key = f"{self.architecture}.{name}"
        pattern = self.metadata.get(key, default_period)
        flags = np.asarray(pattern)
        if flags.dtype == np.bool_ and flags.shape == (n_layers,):
            return tuple(flags.tolist())
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
            return tuple(all_but_every(pattern, n_layers))
        raise FormatError(f"{key} is {pattern!r:.60}; expected a number, or a bool for each of {n_layers} layers")


def all_but_every(period: int, n_layers: int) -> list[bool]:
    """Of so many layers, True for all but the last of every `period`; 0: for all."""
    return [not period or (layer + 1) % period != 0 for layer in range(n_layers)]


def decoder_config(metadata: Mapping[str, Any], style: Style = LLAMA, caps: bool = False, **more: Any) -> ModelConfig:
    """The hyperparameters that all decoders share; `more` replaces what a family has otherwise.

    caps:  the family has soft caps; where another has one, it is refused.

    Raises FormatError or UnsupportedError naming the key.
    """
    keys = Keys(metadata)
    _refuse_unsupported(keys, caps, more.get("mixture") is not None)
    _refuse_unread(keys, style, more)
    n_embd, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    n_kv_heads = keys.count("attention.head_count_kv", n_heads)
    head_dim = keys.count("attention.key_length", max(1, n_embd // n_heads))
    if n_heads % n_kv_heads:
        raise FormatError(f"{n_heads} attention heads cannot share {n_kv_heads} key-value heads evenly")
    n_rot = keys.count("rope.dimension_count", head_dim)
    if n_rot % 2 or n_rot > head_dim:
        raise FormatError(
            f"{keys.architecture}.rope.dimension_count is {n_rot}; expected an even number up to {head_dim}"
        )
    if keys.has("hidden_act"):
        name = keys.text("hidden_act", "")
        if name not in ACTIVATIONS:
            raise UnsupportedError(
                f"{keys.architecture}.hidden_act is {name!r:.60}; edgellm knows {', '.join(ACTIVATIONS)}"
            )
        style = style._replace(activation=ACTIVATIONS[name])
    n_layers, n_ctx_train = keys.count("block_count"), keys.count("context_length")
    scaling = read_scaling(keys)
    epsilon = "attention.layer_norm_rms_epsilon" if style.norm == "rms" else "attention.layer_norm_epsilon"
    shape: dict[str, Any] = {
        "architecture": keys.architecture,
        "n_ctx_train": n_ctx_train,
        "n_ctx": n_ctx_train,
        "n_embd": n_embd,
        "n_layers": n_layers,
        "n_ff": keys.count("feed_forward_length"),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "value_dim": keys.count("attention.value_length", head_dim),
        "n_rot": n_rot,
        "epsilon": keys.number(epsilon),
        "rope_base": keys.number("rope.freq_base", 10000.0),
        "rope_scale": scaling.factor if scaling.kind == "linear" else 1.0,
        "scaling": scaling,
        "rotates": (True,) * n_layers,
        "style": style,
        "attention_cap": keys.cap("attn_logit_softcapping") if caps else None,
        "logit_cap": keys.cap("final_logit_softcapping") if caps else None,
        "attention_scale": keys.number("attention.scale", 1 / math.sqrt(head_dim), zero=1 / math.sqrt(head_dim)),
        "windows": keys.windows(n_layers),
    }
    return ModelConfig(**(shape | more))


def has_experts(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says that it holds a mixture of experts.

    A count of experts that is no number is passed over: their tensors would have no place.
    """
    n_experts = metadata.get(f"{get_value(metadata, 'general.architecture', str)}.expert_count")
    return isinstance(n_experts, int) and n_experts > 0


def _refuse_unsupported(keys: Keys, caps: bool, experts_are_known: bool) -> None:
    """Features that would change the forward pass and that no family here has."""
    if has_experts(keys.metadata) and not experts_are_known:
        raise UnsupportedError(
            f"a mixture of experts ({keys.architecture}.expert_count); edgellm runs dense {keys.architecture}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not caps and keys.has(name) and get_value(keys.metadata, f"{keys.architecture}.{name}", float) != 0:
            raise UnsupportedError(f"soft-capped logits ({keys.architecture}.{name})")
    heads = keys.metadata.get(f"{keys.architecture}.attention.head_count")
    if heads is not None and not isinstance(heads, int):
        raise UnsupportedError(f"layers of different shapes ({keys.architecture}.attention.head_count is an array)")


def _refuse_unread(keys: Keys, style: Style, filled: Collection[str]) -> None:
    """Settings of a file that the family would pass over, though the model is another with them."""
    usual = dict(_CHANGING)
    if style.causal:
        usual["attention.causal"] = (None, (True,))
    base = keys.metadata.get(f"{keys.architecture}.rope.freq_base")
    if base is not None and keys.has("attention.sliding_window"):
        usual["rope.freq_base_swa"] = ("rope_base_local", (base,))
    for name, (field, neutral) in usual.items():
        value = keys.metadata.get(f"{keys.architecture}.{name}")
        is_number = isinstance(value, (int, float, np.ndarray))
        if value is None or field in filled or (is_number and np.isin(value, neutral).all()):
            continue
        expected = " or ".join(f"{x!r}".lower() for x in neutral)
        raise UnsupportedError(
            f"{keys.architecture}.{name} is {value!r:.60}; edgellm runs {keys.architecture} with {expected}"
        )
