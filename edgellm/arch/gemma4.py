"""Gemma 4 (Google, 2026), text only.

As Gemma 3, but: heads are wider in layers that see everything, and only a part of them is turned. The upper layers may
look at keys and values of a layer below. Each layer may be given a small embedding of the token of its own, of which
only the rows of a text's tokens are read. Layers may have experts beside their feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgellm.arch.config import Keys, ModelConfig, all_but_every, has_experts
from edgellm.arch.gemma2 import POST_NORMS
from edgellm.arch.gemma3 import GLOBAL_PERIOD, LOCAL_ROPE_BASE, ROPE_BASE, gemma_config, nearby_rotation
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
)
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import dense_feed_forward, embeddings, layer_output, logits_head, normalize, rotation_of
from edgellm.arch.promises import ALWAYS, where
from edgellm.arch.sharing import LastOfKind, PerLayer, attention_of_shared, own_values, sharing_hyperparameters
from edgellm.arch.stacks import Experts
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.graph.nodes import Graph, Value, add, glu, linear, scale

if TYPE_CHECKING:
    from edgellm.arch.mixture import Mixture


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    n_layers = keys.count("block_count")
    n_kv_heads = keys.counts("attention.head_count_kv", n_layers)
    n_ff = keys.counts("feed_forward_length", n_layers)
    one = {f"{keys.architecture}.attention.head_count_kv": n_kv_heads[-1],
           f"{keys.architecture}.feed_forward_length": n_ff[0]}  # fmt: skip
    c = gemma_config(
        {**metadata, **one},
        GLOBAL_PERIOD,
        mixture=_mixture({**metadata, **one}),
        attention_scale=1.0,
        logit_cap=keys.cap("final_logit_softcapping"),
        caps=True,
        n_shared_layers=keys.count("attention.shared_kv_layers", 0, least=0),
        n_embd_per_layer=keys.count("embedding_length_per_layer_input", 0, least=0),
    )
    near = keys.count("attention.key_length_swa", c.head_dim)
    n_rot = keys.count("rope.dimension_count_swa", near)
    if n_rot % 2 or n_rot > near:
        raise FormatError(
            f"{keys.architecture}.rope.dimension_count_swa is {n_rot}; expected an even number up to {near}"
        )
    if wrong := [n for n in n_kv_heads if c.n_heads % n]:
        raise FormatError(f"{c.n_heads} attention heads cannot share {wrong[0]} key-value heads evenly")
    narrow = {"head_dim": near, "value_dim": keys.count("attention.value_length_swa", near), "n_rot": n_rot}
    layers = (
        {"n_kv_heads": kv, "n_ff": ff} | ({} if window is None else narrow)
        for window, kv, ff in zip(c.windows, n_kv_heads, n_ff, strict=True)
    )
    return replace(c, layers=tuple(layers))


def _mixture(metadata: Mapping[str, Any]) -> Mixture | None:
    if not has_experts(metadata):
        return None
    from edgellm.arch.gemma4_experts import mixture  # which dense files do not need

    return mixture(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    everywhere = rotation_of(w, c, interleaved=False)
    n_near = next((c.of_layer(layer).n_rot for layer, window in enumerate(c.windows) if window), c.n_rot)
    nearby = nearby_rotation(c, n_near)
    x = embeddings(g, w, c)
    per_layer = PerLayer(g, w, c, x) if c.n_embd_per_layer else None
    last = LastOfKind(c)
    for layer, window in enumerate(c.windows):
        block, of = w.block(layer), c.of_layer(layer)
        h = normalize(block, of, x, "attn_norm")
        h = attention_of_shared(block, of, h, everywhere if window is None else nearby, last, layer)
        x = add(x, normalize(block, of, h, "post_attention_norm"), name=block.named("ffn_inp"))
        x = add(x, normalize(block, of, _feed_forward(block, of, x), "post_ffw_norm"))
        if per_layer is not None:
            gate = linear(x, block.take("inp_gate", c.n_embd_per_layer, c.n_embd))
            inner = glu(gate, per_layer.of(layer), "gelu")
            h = linear(inner, block.take("proj", c.n_embd, c.n_embd_per_layer))
            x = add(x, normalize(block, of, h, "post_norm"))
        by = float(block.take("layer_output_scale", 1).dequantize()[0]) if block.has("layer_output_scale") else 1.0
        x = g.name(scale(x, by), layer_output(block, c, layer))
    return g.output(x)


def _feed_forward(w: Weights, c: ModelConfig, x: Value) -> Value:
    if c.mixture is None or not w.has("ffn_gate_inp"):
        return dense_feed_forward(w, c, normalize(w, c, x, "ffn_norm"))
    from edgellm.arch.gemma4_experts import feed_forward_and_experts

    return feed_forward_and_experts(w, c, x)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_activation", "gelu_pytorch_tanh")
    s.expect("use_bidirectional_attention", None, "vision")
    full, sliding = _ropes(s)
    shape = decoder_hyperparameters(s, full)
    n_layers, near = shape["block_count"], shape["attention.key_length"]
    slides = _slides(s, n_layers)
    wide, n_kv_wide = _of_wide_layers(s, slides)
    n_shared = s.count("num_kv_shared_layers", 0, least=0)
    first_shared = n_layers - n_shared
    n_ff = [shape["feed_forward_length"]] * n_layers
    if s.flag("use_double_wide_mlp"):
        n_ff = [2 * n if layer >= first_shared else n for layer, n in enumerate(n_ff)]
    n_kv = [shape["attention.head_count_kv"] if slide else n_kv_wide for slide in slides]
    return shape | sharing_hyperparameters(s, slides, sliding) | _experts(s) | {
        "attention.key_length": wide,
        "attention.value_length": wide,
        "attention.key_length_swa": near,
        "attention.value_length_swa": near,
        "attention.head_count_kv": n_kv[0] if len(set(n_kv)) == 1 else n_kv,
        "feed_forward_length": n_ff[0] if len(set(n_ff)) == 1 else n_ff,
        "embedding_length_per_layer_input": s.count("hidden_size_per_layer_input", 0, least=0),
        "rope.dimension_count": wide,
        "rope.dimension_count_swa": near,
    }  # fmt: skip


def _slides(s: Settings, n_layers: int) -> list[bool]:
    """Which layers have a window; the last has none, as in transformers, whatever config.json says."""
    slides = layer_types(s, n_layers) or all_but_every(GLOBAL_PERIOD, n_layers)
    return [*slides[:-1], False]


def _keys_are_values(s: Settings, layer: int) -> bool:
    return s.flag("attention_k_eq_v") and not _slides(s, s.count("num_hidden_layers"))[layer]


def _experts(s: Settings) -> dict[str, Any]:
    if not s.flag("enable_moe_block"):
        return {}
    from edgellm.arch.gemma4_experts import hyperparameters

    return hyperparameters(s)


def _of_wide_layers(s: Settings, slides: list[bool]) -> tuple[int, int]:
    """How wide heads are in layers that see everything, and how many of keys and values there are.

    transformers writes it layer by layer; its first files say it once for all. Raises UnsupportedError for layers that
    differ otherwise.
    """
    n_kv = s.count("num_key_value_heads")
    usual = {"head_dim": s.count("global_head_dim", 512)}
    if s.flag("attention_k_eq_v") and s.get("num_global_key_value_heads") is not None:
        usual["num_key_value_heads"] = s.count("num_global_key_value_heads")
    own = s.section("per_layer_config").values
    if not own and s.values.get("per_layer_config") is not None:
        usual = {}  # an empty one says that no layer differs
    if own:
        if not all(layer.isdecimal() and isinstance(changes, Mapping) for layer, changes in own.items()):
            raise FormatError(f"{s.file}: per_layer_config is {shown(own)}; expected objects by layer number")
        found = {int(layer): dict(changes) for layer, changes in own.items()}
        usual = next(iter(found.values()))
        wide = [layer for layer, slide in enumerate(slides) if not slide]
        if sorted(found) != wide or any(changes != usual for changes in found.values()):
            raise UnsupportedError(f"{s.file}: per_layer_config differs among layers that see everything, or in others")
        if unknown := usual.keys() - {"head_dim", "num_key_value_heads"}:
            raise UnsupportedError(f"{s.file}: per_layer_config changes {min(unknown)!r:.60}")
    of_wide = Settings(
        usual, {"head_dim": s.count("head_dim"), "num_key_value_heads": n_kv}, f"{s.file}: per_layer_config"
    )
    return of_wide.count("head_dim"), of_wide.count("num_key_value_heads")


def _ropes(s: Settings) -> tuple[Settings, Settings]:
    """The rotary embeddings of layers that see everything and of those that slide."""
    ropes = s.section("rope_parameters")
    full, sliding = (ropes.section(f"{kind}_attention").values for kind in ("full", "sliding"))
    usual = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": ROPE_BASE}
    return (
        rope_settings(Settings({"rope_parameters": full or usual}), ("default", "proportional"), partial=True),
        rope_settings(Settings({"rope_theta": LOCAL_ROPE_BASE, "rope_parameters": sliding}), ("default",)),
    )


PER_LAYER = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
HUGGING_FACE = HuggingFace(
    classes=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    model_type="gemma4_text",
    hyperparameters=_hyperparameters,
    tensors=DECODER
    | HEAD_NORMS
    | POST_NORMS
    | PER_LAYER
    | {
        "blk.{}.inp_gate": "model.layers.{}.per_layer_input_gate",
        "blk.{}.proj": "model.layers.{}.per_layer_projection",
        "blk.{}.post_norm": "model.layers.{}.post_per_layer_input_norm",
        "blk.{}.layer_output_scale": "model.layers.{}.layer_scalar",
        "blk.{}.ffn_gate_inp": "model.layers.{}.router.proj",
        "blk.{}.pre_ffw_norm_2": "model.layers.{}.pre_feedforward_layernorm_2",
        "blk.{}.post_ffw_norm_1": "model.layers.{}.post_feedforward_layernorm_1",
        "blk.{}.post_ffw_norm_2": "model.layers.{}.post_feedforward_layernorm_2",
    },
    bare=("layer_output_scale",),
    experts={
        "blk.{}.ffn_gate_up_exps": Experts(None, "model.layers.{}.experts.gate_up_proj"),
        "blk.{}.ffn_down_exps": Experts(None, "model.layers.{}.experts.down_proj"),
    },
    vectors={
        "blk.{}.ffn_gate_inp.scale": "model.layers.{}.router.scale",
        "blk.{}.ffn_down_exps.scale": "model.layers.{}.router.per_expert_scale",
    },
    biases=ATTENTION_BIASES,
    promises={
        "attn_v": own_values(_keys_are_values, "attention_k_eq_v", "layer_types"),
    }
    | dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), ALWAYS)
    | dict.fromkeys(("ffn_gate_inp", "ffn_gate_inp.scale", "ffn_down_exps.scale"), where("enable_moe_block")),
    defaults=DEFAULTS
    | {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "sliding_window": 512,
        "hidden_size_per_layer_input": 256, "tie_word_embeddings": True,
    },
    rope=lambda s: _ropes(s)[0],
)  # fmt: skip
