"""How Hugging Face stores a family: the names of its tensors, and what its config.json means.

It stands beside the forward pass, so that a new family can be converted as soon as it runs: one `HuggingFace`
says both ways at once, from a checkpoint to GGUF and back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.config import MOST_LAYERS, ModelConfig
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    from edgellm.formats.adapters.naming import Naming

# GGUF's names of the tensors that every decoder has, and Hugging Face's; both end in .weight or .bias.
DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
HEAD_NORMS = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
# The linears that can have biases, and the key of config.json that says whether they do.
ATTENTION_BIASES = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention_bias")
FEED_FORWARD_BIASES = dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "mlp_bias")
# What transformers takes for keys that config.json leaves out; families differ in the rest.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class HuggingFace:
    """One kind of checkpoint.

    classes:          names of the model in config.json's "architectures"; the first is written when exporting.
    model_type:       its short name there.
    hyperparameters:  config.json -> GGUF's keys, without the architecture's name in front.
    settings:         the way back: what config.json says beyond what all decoders say; None: there is none yet.
    tensors:          GGUF's names -> Hugging Face's, without the endings .weight and .bias.
    paired:           tensors whose rows GGUF holds in another order: rotary pairs as neighbours.
    offsets:          tensors that GGUF holds with a number added.
    biases:           linears with biases, and the key of config.json that says so; None where they always have one.
    defaults:         what transformers takes for what config.json leaves out.
    null_stays:       keys whose null is a value of its own, see `Settings`.
    rope:             config.json -> the rotary embedding of layers that see everything, see `rope_settings`.
    fits:             whether a model of the GGUF architecture is one of this kind, when exporting.
    has_config:       whether a config.json is one of this kind, where others name the same class.
    prefix:           what names of tensors may begin with, where the model is a part of another.
    other_tensors:    the names in another form of checkpoint, which has the same config.json.
    left_out:         tensors that no vector or score needs, as a regular expression of how their names begin.
    first_rows:       tensors without their first rows: those up to the number under a key of config.json.
    ranks:            which hidden state of a text its classifier sees, "cls" or "mean", or the key of config.json that
                      says so; None where there is no classifier.
    """

    classes: tuple[str, ...]
    model_type: str
    hyperparameters: Callable[[Settings], dict[str, Any]]
    settings: Callable[[ModelConfig], dict[str, Any]] | None = None
    tensors: Mapping[str, str] = field(default_factory=lambda: DECODER)
    paired: tuple[str, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)
    biases: Mapping[str, str | None] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    null_stays: tuple[str, ...] = ("num_key_value_heads",)
    rope: Callable[[Settings], Settings] = lambda s: rope_settings(s)
    fits: Callable[[ModelConfig], bool] = lambda c: True
    has_config: Callable[[Mapping[str, Any]], bool] = lambda config: True
    prefix: str = ""
    other_tensors: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None
    first_rows: Mapping[str, str] = field(default_factory=dict)
    ranks: str | None = None

    def settings_of(self, config: Mapping[str, Any]) -> Settings:
        """config.json with what transformers takes for what it leaves out."""
        return Settings(config, self.defaults, null_stays=self.null_stays)

    def row_order(self, name: str, c: ModelConfig) -> NDArray[np.int32] | None:
        """Which row of the checkpoint's tensor each row of GGUF's is, for `name` such as "blk.0.attn_q.weight".

        None where the order is the same. Inside each head, the dimensions (i, i + n/2) become (2i, 2i + 1).
        """
        part = name.split(".")[-2]
        if part not in self.paired:
            return None
        n_heads = c.n_heads if part == "attn_q" else c.n_kv_heads
        rows = np.arange(n_heads * c.head_dim, dtype=np.int32)
        return np.ascontiguousarray(rows.reshape(n_heads, 2, -1).swapaxes(1, 2)).reshape(-1)

    def offset(self, name: str) -> float:
        """What is added to the checkpoint's numbers."""
        return self.offsets.get(name.split(".")[-2], 0.0)

    def names(self, n_layers: int) -> Iterator[tuple[str, str]]:
        """All tensors that the family can have, as (GGUF's name, Hugging Face's name), layer by layer."""
        for ours, name in self.tensors.items():
            if "{}" not in ours:
                yield f"{ours}.weight", f"{name}.weight"
                if ours in self.biases:
                    yield f"{ours}.bias", f"{name}.bias"
        for layer in range(n_layers):
            for ours, name in self.tensors.items():
                if "{}" in ours:
                    yield f"{ours.format(layer)}.weight", f"{name.format(layer)}.weight"
                    if ours.removeprefix("blk.{}.") in self.biases:
                        yield f"{ours.format(layer)}.bias", f"{name.format(layer)}.bias"

    def bias_names(self, part: str, n_layers: int) -> list[str]:
        """GGUF's names of all biases of a linear or norm that the family has in `biases`."""
        if part in self.tensors:
            return [f"{part}.bias"]
        return [f"blk.{layer}.{part}.bias" for layer in range(n_layers)]

    def named_as_in(self, names: Collection[str]) -> HuggingFace:
        """The same with the form of names that a checkpoint has."""
        plain = {name.removeprefix(self.prefix) for name in names}
        fits = any(f"{name}.weight" in plain for ours, name in self.other_tensors.items() if "{}" not in ours
                   and name not in self.tensors.values())  # fmt: skip
        return replace(self, tensors=self.other_tensors, other_tensors={}) if fits else self

    def own_name(self, name: str, known: Collection[str]) -> str:
        """What a tensor is called as a part of this family alone; known: all names that it can have."""
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # as TensorFlow calls them
        for candidate in (name, name.removeprefix(self.prefix), f"model.{name}"):
            if candidate in known:
                return candidate
        return name.removeprefix(self.prefix)

    def naming(self, c: ModelConfig) -> Naming:
        """What an adapter's files need to know of all that."""
        from edgellm.formats.adapters.naming import Naming

        names = dict(self.names(c.n_layers))
        orders = {name: order for name in names if (order := self.row_order(name, c)) is not None}
        return Naming(names, orders, {name: self.offset(name) for name in names if self.offset(name)})


# Models that also see or hear keep their language model beside the rest.
_LANGUAGE_PREFIXES = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
                      ("model.language_model.", "model."))  # fmt: skip


def language_name(name: str) -> str:
    """What a tensor of the language model inside a larger one is called where the language model is alone."""
    return next((new + name[len(old) :] for old, new in _LANGUAGE_PREFIXES if name.startswith(old)), name)


def decoder_hyperparameters(s: Settings, rope: Settings | None = None) -> dict[str, Any]:
    """GGUF's keys for what all decoders have in their config.json; `rope` where the family keeps it elsewhere."""
    n_embd, n_heads = s.count("hidden_size"), s.count("num_attention_heads")
    head_dim = s.count("head_dim", max(1, n_embd // n_heads))
    return {
        "block_count": s.count("num_hidden_layers", most=MOST_LAYERS),
        "context_length": s.count("max_position_embeddings"),
        "embedding_length": n_embd,
        "feed_forward_length": s.count("intermediate_size"),
        "attention.head_count": n_heads,
        "attention.head_count_kv": s.count("num_key_value_heads", n_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": s.number("rms_norm_eps"),
        "rope.dimension_count": head_dim,
        **rope_hyperparameters(rope or rope_settings(s)),
    }


def decoder_settings(c: ModelConfig) -> dict[str, Any]:
    """config.json for what all decoders have: the inverse of `decoder_hyperparameters`, without rotary embedding."""
    return {
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.n_ctx_train,
        "rms_norm_eps": c.epsilon,
    }


def encoder_hyperparameters(
    s: Settings, activation: str = "hidden_act", epsilon: str = "layer_norm_eps"
) -> dict[str, Any]:
    """GGUF's keys for what all encoders have in their config.json; of two, the keys there."""
    return {
        "block_count": s.count("num_hidden_layers", most=MOST_LAYERS),
        "context_length": s.count("max_position_embeddings"),
        "embedding_length": s.count("hidden_size"),
        "feed_forward_length": s.count("intermediate_size"),
        "attention.head_count": s.count("num_attention_heads"),
        "attention.layer_norm_epsilon": s.number(epsilon),
        "attention.causal": False,
        "hidden_act": s.get(activation, "gelu"),
    }


def window_hyperparameters(window: int | None, slides: list[bool]) -> dict[str, Any]:
    """GGUF's keys for layers of which some look back over a window only.

    Raises FormatError for layers that slide when there is no window.
    """
    if not any(slides):
        return {}
    if window is None:
        raise FormatError(
            "config.json: layer_types names sliding_attention, and there is no window; expected a sliding_window (with "
            "use_sliding_window where the family has it)"
        )
    pattern = {} if all(slides) else {"attention.sliding_window_pattern": slides}
    return {"attention.sliding_window": window, **pattern}


def layer_types(s: Settings, n_layers: int) -> list[bool] | None:
    """Which layers slide, where the config says it for each."""
    types = s.get("layer_types")
    if types is None:
        return None
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or len(types) != n_layers or not all(isinstance(kind, str) for kind in types):
        raise FormatError(f"config.json: layer_types is {shown(types)}; expected a name for each of {n_layers} layers")
    if unknown := [kind for kind in types if kind not in known]:
        raise UnsupportedError(f"config.json: a layer of type {unknown[0]!r:.60}; edgellm runs {', '.join(known)}")
    return [known[kind] for kind in types]


# --- rotary embedding ---------------------------------------------------------------------------------------


def rope_settings(s: Settings, known: tuple[str, ...] = ("default", "linear", "llama3")) -> Settings:
    """rope_theta, rope_type and what belongs to it, wherever this version of config.json keeps them.

    As in transformers, rope_scaling counts before rope_parameters, and what the section leaves out may stand beside it.
    Raises UnsupportedError for a rope_type that is not `known`, and for sections by kind of layer.
    """
    name = "rope_scaling" if s.section("rope_scaling").values else "rope_parameters"
    rope = s.section(name)
    if inner := next((key for key, value in rope.values.items() if isinstance(value, dict)), None):
        raise UnsupportedError(f"{rope.file} has a section {inner!r:.60}; edgellm runs this family with one for all")
    for place in (s, rope):
        place.expect("partial_rotary_factor", 1.0)
    beside = {
        "rope_theta": s.get("rope_theta", 10000.0),
        "rope_type": rope.get("type", "default"),
        "original_max_position_embeddings": s.get("max_position_embeddings"),
    }
    original = {key: s.get(key) for key in ("original_max_position_embeddings",) if s.get(key) is not None}
    found = Settings(rope.values | original, beside, rope.file)
    if (kind := found.get("rope_type")) not in known:
        raise UnsupportedError(f"{rope.file}: rope scaling of type {kind!r:.60}; edgellm knows {', '.join(known)} here")
    return found


def rope_hyperparameters(rope: Settings) -> dict[str, Any]:
    """GGUF's keys; Llama 3's factors are a tensor instead, see `llama3_factors`."""
    result: dict[str, Any] = {"rope.freq_base": rope.number("rope_theta")}
    if rope.get("rope_type") == "linear":
        result |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.number("factor")}
    return result


def llama3_factors(rope: Settings, n_rot: int) -> NDArray[np.float32] | None:
    """float32 [n_rot / 2]: how much slower each pair turns in Llama 3.1 and later; None for other kinds of rope.

    Wavelengths that fit into the original context several times stay, those longer than it are stretched by
    `factor`, and between the two there is a smooth passage.
    """
    if rope.get("rope_type") != "llama3":
        return None
    factor, n_ctx = rope.number("factor"), rope.number("original_max_position_embeddings")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise FormatError(f"{rope.file}: high_freq_factor {high} is not above low_freq_factor {low}")
    turns = n_ctx * rope.number("rope_theta") ** (-np.arange(0, n_rot, 2) / n_rot) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


def llama3_settings(factors: NDArray[np.float32], base: float) -> dict[str, Any]:
    """The rope_parameters that make these factors: the inverse of `llama3_factors`.

    Only products of its numbers count, so low_freq_factor can be 1, as in all published models.
    UnsupportedError when the factors are of another kind.
    """
    n_rot, factor = 2 * len(factors), float(factors.max())
    turns_per_position = base ** (-np.arange(0, n_rot, 2) / n_rot) / (2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    between = np.flatnonzero((share > 1e-3) & (share < 1 - 1e-3))
    if factor > 1 and len(between) >= 2:
        # share = slope * turns_per_position - low / (high - low), with low = 1
        slope, start = np.polyfit(turns_per_position[between], share[between], 1).tolist()
        high = 1 - 1 / start
        found = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": round(high, 3),
            "original_max_position_embeddings": round(slope * (high - 1)),
            "rope_theta": base,
        }
        again = llama3_factors(Settings(found), n_rot)
        if again is not None and np.allclose(again, factors, rtol=1e-3):
            return found
    raise UnsupportedError("tensor 'rope_freqs.weight' holds factors that no rope scaling of transformers makes")
