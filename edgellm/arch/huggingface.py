"""How Hugging Face stores a family: the names of its tensors, and what its config.json means.

It stands beside the forward pass, so that a new family can be converted as soon as it runs: one `HuggingFace`
says both ways at once, from a checkpoint to GGUF and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.config import MOST_LAYERS, ModelConfig, all_but_every
from edgellm.arch.huggingface_rope import rope_hyperparameters, rope_settings, turned_dimensions
from edgellm.arch.promises import Promise, where
from edgellm.arch.stacks import Experts, KeysOrValues, SomeRows
from edgellm.arch.style import ACTIVATIONS, Style
from edgellm.dataclass import dataclass
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    from edgellm.formats.adapters.naming import Naming, Stack

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
# Those that only some models of a family have.
HEAD_NORMS_IF_SAID = dict.fromkeys(("attn_q_norm", "attn_k_norm"), where("use_qk_norm"))
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


Order = Callable[[str, ModelConfig], NDArray[np.int32] | None]


def part_of(name: str) -> str:
    """What a tensor is in its layer: attn_q for blk.0.attn_q.weight."""
    return name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]


@dataclass(frozen=True)
class HuggingFace:
    """One kind of checkpoint.

    classes:          names of the model in config.json's "architectures"; the first is written when exporting.
    model_type:       its short name there.
    hyperparameters:  config.json -> GGUF's keys, without the architecture's name in front.
    settings:         the way back: what config.json says beyond what all decoders say; None for a family that is not
                      exported.
    aliases:          other names of config.json's keys -> those that edgellm reads. Where both stand there and differ,
                      the file is refused, but for the `first`, which count in transformers whatever the other says.
    tensors:          GGUF's names -> Hugging Face's, without the endings .weight and .bias.
    also:             names that some of its checkpoints have in place of those.
    paired:           tensors whose rows GGUF holds in another order: rotary pairs as neighbours.
    interleaved:      whether `attn_qkv` has queries, keys and values group by group there; GGUF has all queries first.
    transposed:       weights that are [n_in, n_out] there, unless they are quantized.
    stacked:          weights of GGUF that are several tensors there; in their name, * stands for 0, 1 and so on.
    squeezed:         weights of convolutions, [n_cols, n_taps], that are [n_cols, 1, n_taps] there.
    offsets:          tensors that GGUF holds with a number added.
    row_orders, column_orders:  given a tensor's name in its layer, which row or column of the checkpoint's each of
                      GGUF's is; None where the order is the same.
    changed:          tensors that GGUF holds as a function of what they are there, number by number.
    bare:             tensors whose names have no ending there.
    biases:           linears and norms with biases, and the key of config.json that says so; None where they always
                      have one.
    promises:         parts of layers that are there or not: when they are, see `Promise`. In a mixture, experts and
                      feed-forwards need none, nor does what is in every layer that has experts and is `ALWAYS` there.
    dense_first:      the keys of config.json that say how many layers, the first ones, have no experts.
    defaults:         what transformers takes for what config.json leaves out.
    null_stays:       keys whose null is a value of its own, see `Settings`.
    rope:             config.json -> the rotary embedding of layers that see everything, see `rope_settings`.
    fits:             whether a model of the GGUF architecture is one of this kind, when exporting.
    experts:          GGUF's names of matrices that are stacked or taken apart, and where a checkpoint has them.
    vectors:          tensors of one dimension whose names end otherwise than in .weight or .bias: whole names.
    has_config:       whether a config.json is one of this kind, where others name the same class.
    """

    classes: tuple[str, ...]
    model_type: str
    hyperparameters: Callable[[Settings], dict[str, Any]]
    settings: Callable[[ModelConfig], dict[str, Any]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    first: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=lambda: DECODER)
    also: Mapping[str, str] = field(default_factory=dict)
    paired: tuple[str, ...] = ()
    interleaved: bool = False
    transposed: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    squeezed: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)
    biases: Mapping[str, str | None] = field(default_factory=dict)
    promises: Mapping[str, Promise] = field(default_factory=dict)
    dense_first: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    null_stays: tuple[str, ...] = ("num_key_value_heads",)
    rope: Callable[[Settings], Settings] = lambda s: rope_settings(s)
    fits: Callable[[ModelConfig], bool] = lambda c: True
    experts: Mapping[str, Experts | KeysOrValues | SomeRows] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    has_config: Callable[[Mapping[str, Any]], bool] = lambda config: True
    row_orders: Order = lambda part, c: None
    column_orders: Order = lambda part, c: None
    changed: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = field(default_factory=dict)

    def settings_of(self, config: Mapping[str, Any]) -> Settings:
        """config.json with what transformers takes for what it leaves out. Raises FormatError for contradictions."""
        for name, ours in self.aliases.items():
            if name in config and config.get(ours) not in (None, config[name]) and name not in self.first:
                raise FormatError(
                    f"config.json: {name} is {shown(config[name])} and {ours} is {shown(config[ours])}, which are two "
                    "names of one setting; leave the wrong one out"
                )
        renamed = {self.aliases[name]: value for name, value in config.items() if name in self.aliases}
        spelled = {ours: name for name, ours in self.aliases.items() if name in config and ours not in config}
        return Settings({**config, **renamed}, self.defaults, null_stays=self.null_stays, spelled=spelled)

    def row_order(self, name: str, c: ModelConfig) -> NDArray[np.int32] | None:
        """Which row of the checkpoint's tensor each row of GGUF's is, for `name` such as "blk.0.attn_q.weight".

        None where the order is the same. Inside each head, the dimensions (i, i + n/2) become (2i, 2i + 1).
        """
        part = part_of(name)
        if (order := self.row_orders(part, c)) is not None:
            return order
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
        """What an adapter's files need to know of all that; tensors that GGUF has in another form are left out."""
        from edgellm.formats.adapters.naming import Naming

        names = {
            ours: theirs
            for ours, theirs in self.names(c.n_layers)
            if self.column_orders(part_of(ours), c) is None and part_of(ours) not in self.changed
        }
        orders = {name: order for name in names if (order := self.row_order(name, c)) is not None}
        offsets = {name: self.offset(name) for name in names if self.offset(name)}
        return Naming(names, orders, offsets, dict(self._stacks(c)))

    def _stacks(self, c: ModelConfig) -> Iterator[tuple[str, Stack]]:
        """Where the experts of all layers are."""
        from edgellm.formats.adapters.naming import Stack

        for layer in range(c.n_layers if c.mixture is not None else 0):
            for ours, place in self.experts.items():
                if isinstance(place, Experts):
                    assert c.mixture is not None
                    names = [name.format(layer) for name in (place.in_memory, place.stacked) if name is not None]
                    split = place.split and place.split.replace("{}", str(layer), 1)
                    n_in = c.mixture.n_ff if ours.endswith("down_exps") else c.n_embd
                    sizes = c.mixture.n_experts, n_in
                    yield (
                        f"{ours.format(layer)}.weight",
                        Stack(*sizes, split, tuple(names), place.part, place.n_parts, place.is_across),
                    )


# Models that also see or hear keep their language model beside the rest.
_LANGUAGE_PREFIXES = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
                      ("model.language_model.", "model."))  # fmt: skip


def language_name(name: str) -> str:
    """What a tensor of the language model inside a larger one is called where the language model is alone."""
    return next((new + name[len(old) :] for old, new in _LANGUAGE_PREFIXES if name.startswith(old)), name)


def decoder_hyperparameters(
    s: Settings, rope: Settings | None = None, norm: str = "rms", shares: bool = False
) -> dict[str, Any]:
    """GGUF's keys for what all decoders have in their config.json; `rope` where the family keeps it elsewhere.

    norm:    "rms" or "layer", see `Style`.
    shares:  whether heads share out the hidden state, so that the family has no head_dim: in transformers, attention
             goes by the width alone there, and rotary embedding by a head_dim that has got in.
    """
    n_embd, n_heads = s.count("hidden_size"), s.count("num_attention_heads")
    if shares:
        s.expect("head_dim", max(1, n_embd // n_heads))
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
    if not isinstance(name, str) or name not in ACTIVATIONS:
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


def window_hyperparameters(window: int | None, slides: list[bool], period: int = 0) -> dict[str, Any]:
    """GGUF's keys for layers of which some look back over a window only.

    period:  of so many layers the last sees everything, in files of the family that name no layers; 0: none does.

    Raises FormatError for layers that slide when there is no window.
    """
    if not any(slides):
        return {}
    if window is None:
        raise FormatError(
            "config.json: layer_types names sliding_attention, and there is no window; expected a sliding_window (with "
            "use_sliding_window where the family has it)"
        )
    return {"attention.sliding_window": window} | pattern_hyperparameters(slides, period)


def pattern_hyperparameters(slides: list[bool], period: int) -> dict[str, Any]:
    """GGUF's key for which layers slide, where it is not all but every period-th, as in a file that does not say it."""
    return {} if slides == all_but_every(period, len(slides)) else {"attention.sliding_window_pattern": slides}


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
