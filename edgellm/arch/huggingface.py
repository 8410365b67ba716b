"""How Hugging Face stores a family: the names of its tensors, and what its config.json means.

It stands beside the forward pass, so that a new family can be converted as soon as it runs: one `HuggingFace`
says both ways at once, from a checkpoint to GGUF and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.config import MOST_LAYERS, ModelConfig
from edgellm.arch.rope import RopeScaling
from edgellm.arch.style import ACTIVATIONS, Style
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
# A LayerNorm's biases are there wherever its weights are.
NORM_BIASES = dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"))


def norms_after(tensors: Mapping[str, str]) -> dict[str, str]:
    """The same with norms after attention and feed-forward in place of those before."""
    kept = {ours: theirs for ours, theirs in tensors.items() if ours not in ("blk.{}.attn_norm", "blk.{}.ffn_norm")}
    return kept | {
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    }


# What transformers takes for keys that config.json leaves out; families differ in the rest.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Experts:
    """Where a checkpoint has the matrices of a layer's experts, which GGUF stacks: [n_experts, n_out, n_in].

    split:      the name of each by itself, with places for the layer and the expert; None where no checkpoint has it.
    stacked:    the name of all in one tensor.
    part:       of its rows, taken of every expert, the part-th of n_parts.
    is_across:  it is [n_experts, n_in, n_out] instead, and the parts alternate.
    """

    split: str | None
    stacked: str
    part: int = 0
    n_parts: int = 1
    is_across: bool = False


@dataclass(frozen=True)
class KeysOrValues:
    """The matrix of a checkpoint that makes keys and values of what latent attention keeps, head by head.

    GGUF has both by themselves: of values [n_heads, value_dim, kv_rank], of keys across [n_heads, kv_rank, n_plain].
    """

    name: str
    values: bool


@dataclass(frozen=True)
class HuggingFace:
    """One kind of checkpoint.

    classes:          names of the model in config.json's "architectures"; the first is written when exporting.
    model_type:       its short name there.
    hyperparameters:  config.json -> GGUF's keys, without the architecture's name in front.
    settings:         the way back: what config.json says beyond what all decoders say; None for a family that is not
                      exported.
    aliases:          other names of config.json's keys -> those that edgellm reads.
    tensors:          GGUF's names -> Hugging Face's, without the endings .weight and .bias.
    also:             names that some of its checkpoints have in place of those.
    paired:           tensors whose rows GGUF holds in another order: rotary pairs as neighbours.
    interleaved:      whether `attn_qkv` has queries, keys and values group by group there; GGUF has all queries first.
    transposed:       weights that are [n_in, n_out] there.
    stacked:          weights of GGUF that are several tensors there; in their name, * stands for 0, 1 and so on.
    offsets:          tensors that GGUF holds with a number added.
    bare:             tensors whose names have no ending there.
    biases:           linears and norms with biases, and the key of config.json that says so; None where they always
                      have one.
    defaults:         what transformers takes for what config.json leaves out.
    null_stays:       keys whose null is a value of its own, see `Settings`.
    rope:             config.json -> the rotary embedding of layers that see everything, see `rope_settings`.
    fits:             whether a model of the GGUF architecture is one of this kind, when exporting.
    experts:          GGUF's names of stacked matrices, and where a checkpoint has them.
    vectors:          tensors of one dimension whose names end otherwise than in .weight or .bias: whole names.
    has_config:       whether a config.json is one of this kind, where others name the same class.
    """

    classes: tuple[str, ...]
    model_type: str
    hyperparameters: Callable[[Settings], dict[str, Any]]
    settings: Callable[[ModelConfig], dict[str, Any]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=lambda: DECODER)
    also: Mapping[str, str] = field(default_factory=dict)
    paired: tuple[str, ...] = ()
    interleaved: bool = False
    transposed: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)
    biases: Mapping[str, str | None] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    null_stays: tuple[str, ...] = ("num_key_value_heads",)
    rope: Callable[[Settings], Settings] = lambda s: rope_settings(s)
    fits: Callable[[ModelConfig], bool] = lambda c: True
    experts: Mapping[str, Experts | KeysOrValues] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    has_config: Callable[[Mapping[str, Any]], bool] = lambda config: True

    def settings_of(self, config: Mapping[str, Any]) -> Settings:
        """config.json with what transformers takes for what it leaves out."""
        renamed = {self.aliases[name]: value for name, value in config.items() if name in self.aliases}
        return Settings({**config, **renamed}, self.defaults, null_stays=self.null_stays)

    def row_order(self, name: str, c: ModelConfig) -> NDArray[np.int32] | None:
        """Which row of the checkpoint's tensor each row of GGUF's is, for `name` such as "blk.0.attn_q.weight".

        None where the order is the same. Inside each head, the dimensions (i, i + n/2) become (2i, 2i + 1).
        """
        part = name.split(".")[-2]
        if part == "attn_qkv" and self.interleaved:
            group = c.n_heads // c.n_kv_heads
            shape = (c.n_kv_heads, group + 2, c.head_dim)
            by_group = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
            parts = (by_group[:, :group], by_group[:, group : group + 1], by_group[:, group + 1 :])
            return np.concatenate([rows.reshape(-1) for rows in parts])
        if part not in self.paired:
            return None
        n_heads = c.n_heads if part == "attn_q" else c.n_kv_heads
        rows = np.arange(n_heads * c.head_dim, dtype=np.int32)
        return np.ascontiguousarray(rows.reshape(n_heads, 2, -1).swapaxes(1, 2)).reshape(-1)

    def full_name(self, name: str) -> str:
        """A tensor's name with that of the model in front, which some checkpoints leave out: of older families, and of
        models that make vectors.
        """
        prefix = self.tensors["token_embd"].split(".")[0] + "."
        heads = (self.tensors.get("output", "lm_head"), prefix)
        if prefix == "model.":
            return prefix + name if name.startswith(("embed_tokens.", "layers.", "norm.")) else name
        return name if name.startswith(heads) else prefix + name

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
            for ours, name in (*self.also.items(), *self.tensors.items()):
                if "{}" in ours:
                    ending = "" if ours.removeprefix("blk.{}.") in self.bare else ".weight"
                    yield f"{ours.format(layer)}.weight", f"{name.format(layer)}{ending}"
                    if ours.removeprefix("blk.{}.") in self.biases:
                        yield f"{ours.format(layer)}.bias", f"{name.format(layer)}.bias"
            for ours, name in self.vectors.items():
                yield ours.format(layer), name.format(layer)

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


def decoder_hyperparameters(s: Settings, rope: Settings | None = None, norm: str = "rms") -> dict[str, Any]:
    """GGUF's keys for what all decoders have in their config.json; `rope` where the family keeps it elsewhere.

    norm:  "rms" or "layer", see `Style`.
    """
    n_embd, n_heads = s.count("hidden_size"), s.count("num_attention_heads")
    head_dim = s.count("head_dim", max(1, n_embd // n_heads))
    rope = rope or rope_settings(s)
    epsilon = {"rms": ("rms_norm_eps", "layer_norm_rms_epsilon"), "layer": ("layer_norm_eps", "layer_norm_epsilon")}
    theirs, ours = epsilon[norm]
    return {
        "block_count": s.count("num_hidden_layers", most=MOST_LAYERS),
        "context_length": s.count("max_position_embeddings"),
        "embedding_length": n_embd,
        "feed_forward_length": s.count("intermediate_size"),
        "attention.head_count": n_heads,
        "attention.head_count_kv": s.count("num_key_value_heads", n_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        f"attention.{ours}": s.number(theirs),
        "rope.dimension_count": turned_dimensions(rope, head_dim),
        **rope_hyperparameters(rope),
    }


def activation_hyperparameters(s: Settings, style: Style, key: str = "hidden_act") -> dict[str, Any]:
    """What GGUF has no key for: an activation that is not the family's usual one."""
    name = s.get(key)
    if name is None:
        return {}
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{s.file}: {key} is {name!r:.60}; edgellm knows {', '.join(ACTIVATIONS)}")
    return {} if ACTIVATIONS[name] == style.activation else {"hidden_act": name}


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


STANDS_STILL = 1e30  # by which a pair is slowed down that is not turned
ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def rope_settings(s: Settings, known: tuple[str, ...] = ROPES, partial: bool = False) -> Settings:
    """rope_theta, rope_type and what belongs to it, wherever this version of config.json keeps them.

    As in transformers, rope_scaling counts before rope_parameters, and what the section leaves out may stand beside it.
    partial:  the family may turn only a part of each head (partial_rotary_factor).

    Raises UnsupportedError for a rope_type that is not `known`, and for sections by kind of layer.
    """
    name = "rope_scaling" if s.section("rope_scaling").values else "rope_parameters"
    rope = s.section(name)
    if inner := next((key for key, value in rope.values.items() if isinstance(value, dict)), None):
        raise UnsupportedError(f"{rope.file} has a section {inner!r:.60}; edgellm runs this family with one for all")
    if not partial:
        for place in (s, rope):
            place.expect("partial_rotary_factor", 1.0)
    beside = {
        "rope_theta": s.get("rope_theta", 10000.0),
        "rope_type": rope.get("type", "default"),
        "original_max_position_embeddings": s.get("max_position_embeddings"),
        "max_position_embeddings": s.get("max_position_embeddings"),
        "partial_rotary_factor": s.get("partial_rotary_factor", 1.0),
    }
    original = {key: s.get(key) for key in ("original_max_position_embeddings",) if s.get(key) is not None}
    found = Settings(rope.values | original, beside, rope.file)
    kind = found.get("rope_type")
    if kind == "su":  # long-rope, as the first of its checkpoints call it
        kind = found.values["rope_type"] = "longrope"
    if kind not in known:
        raise UnsupportedError(f"{rope.file}: rope scaling of type {kind!r:.60}; edgellm knows {', '.join(known)} here")
    return found


def turned_dimensions(rope: Settings, head_dim: int) -> int:
    """How many dimensions of a head are turned."""
    is_part = rope.get("rope_type") != "proportional"  # which has a factor for each pair
    n_rot = int(head_dim * rope.number("partial_rotary_factor", 1.0)) if is_part else head_dim
    if not 2 <= n_rot <= head_dim or n_rot % 2:
        raise UnsupportedError(
            f"{rope.file}: partial_rotary_factor turns {n_rot} of {head_dim} dimensions; expected an even number"
        )
    return n_rot


def rope_hyperparameters(rope: Settings) -> dict[str, Any]:
    """GGUF's keys; the factors of Llama 3 and of long-rope are tensors instead, see `rope_tensors`."""
    result: dict[str, Any] = {"rope.freq_base": rope.number("rope_theta")}
    kind = rope.get("rope_type")
    if kind in ("linear", "dynamic", "yarn"):
        result |= {"rope.scaling.type": kind, "rope.scaling.factor": rope.number("factor")}
    if kind in ("dynamic", "yarn", "longrope"):
        length = "max_position_embeddings" if kind == "dynamic" else "original_max_position_embeddings"
        result["rope.scaling.original_context_length"] = rope.count(length)
    if kind == "yarn":
        result |= _yarn_hyperparameters(rope)
    if kind == "longrope":
        n_ctx, original = rope.count("max_position_embeddings"), rope.count("original_max_position_embeddings")
        factor = rope.number("factor") if rope.get("factor") is not None else n_ctx / original
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        result["rope.scaling.attn_factor"] = rope.number("attention_factor", usual)
    return result


def _yarn_hyperparameters(rope: Settings) -> dict[str, Any]:
    rope.expect("truncate", True)
    factor, (by, of_all) = rope.number("factor"), (rope.get(name) for name in ("mscale", "mscale_all_dim"))
    result: dict[str, Any] = {
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0),
    }
    plain = RopeScaling("yarn", factor).yarn_magnitude
    if rope.get("attention_factor") is not None:
        return result | {"rope.scaling.attn_factor": rope.number("attention_factor") / plain}
    if by and of_all and by == 1:
        return result | {"rope.scaling.yarn_log_multiplier": rope.number("mscale_all_dim")}
    if by and of_all:
        wanted = RopeScaling("yarn", factor, log_multiplier=rope.number("mscale_all_dim")).yarn_magnitude / plain
        wanted *= 0.1 * rope.number("mscale") * math.log(factor) + 1 if factor > 1 else 1.0
        return result | {"rope.scaling.attn_factor": wanted / plain}
    return result


def rope_tensors(rope: Settings, n_rot: int) -> dict[str, NDArray[np.float32]]:
    """The tensors, float32 [n_rot / 2], by which the pairs' frequencies are divided, by their names in GGUF."""
    if (factors := llama3_factors(rope, n_rot)) is not None:
        return {"rope_freqs": factors}
    if rope.get("rope_type") == "proportional":
        n_turned = int(rope.number("partial_rotary_factor", 1.0) * n_rot // 2)
        factors = np.full(n_rot // 2, STANDS_STILL, np.float32)
        factors[:n_turned] = rope.number("factor", 1.0)
        return {"rope_freqs": factors}
    if rope.get("rope_type") != "longrope":
        return {}
    found = {}
    for length in ("long", "short"):
        factors = rope.get(f"{length}_factor")
        is_list = isinstance(factors, list) and all(isinstance(x, (int, float)) and x > 0 for x in factors)
        if not is_list or len(factors) != n_rot // 2:
            raise FormatError(
                f"{rope.file}: {length}_factor is {shown(factors)}; expected {n_rot // 2} positive numbers"
            )
        found[f"rope_factors_{length}"] = np.array(factors, np.float32)
    return found


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
