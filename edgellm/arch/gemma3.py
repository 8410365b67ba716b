"""Gemma 3 (Google, 2025), text only.

Norms before and after each half of a layer and on every query and key head, embeddings scaled by
sqrt(n_embd), GELU-gated feed-forward. Five layers with a sliding window and a short rotary base are followed
by one that sees everything, with a long base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, all_but_every, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DECODER,
    DEFAULTS,
    HEAD_NORMS,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    decoder_settings,
    layer_types,
    pattern_hyperparameters,
)
from edgellm.arch.huggingface_rope import ropes_by_kind
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.rope import frequencies
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError
from edgellm.graph.nodes import Graph, Rotation, Value

STYLE = Style(order="both", activation="gelu", head_norms="heads")
GLOBAL_PERIOD = 6  # of so many layers, the last sees everything
ROPE_BASE, LOCAL_ROPE_BASE = 1e6, 10000.0
# The 27B model alone scales its queries by the width per head instead of the heads' own size.
LAYERS_OF_27B = 62
NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "output_norm")


def configure(metadata: Mapping[str, Any], style: Style = STYLE) -> ModelConfig:
    keys = Keys(metadata)
    keys.count("attention.sliding_window")  # must be there
    more: dict[str, Any] = {}
    if keys.count("block_count") == LAYERS_OF_27B:
        more["attention_scale"] = math.sqrt(keys.count("attention.head_count") / keys.count("embedding_length"))
    return gemma_config(metadata, GLOBAL_PERIOD, style, **more)


def gemma_config(metadata: Mapping[str, Any], period: int, style: Style = STYLE, **more: Any) -> ModelConfig:
    """What Gemma 3 has and those that came of it; `more` is what else a family has.

    period:  of so many layers the last sees everything, where the file does not say it.
    """
    keys = Keys(metadata)
    return decoder_config(
        metadata,
        style,
        embedding_scale=math.sqrt(keys.count("embedding_length")),
        windows=keys.windows(keys.count("block_count"), period),
        rope_base_local=keys.number("rope.freq_base_swa", LOCAL_ROPE_BASE),
        **more,
    )


def nearby_rotation(c: ModelConfig, n_rot: int) -> Rotation:
    """What turns queries and keys of layers with a window."""
    return Rotation(frequencies(c.rope_base_local or LOCAL_ROPE_BASE, n_rot), interleaved=False)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False), nearby_rotation(c, c.n_rot))


head = logits_head


def hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_activation", "gelu_pytorch_tanh")
    s.expect("attn_logit_softcapping", None)
    s.expect("final_logit_softcapping", None)
    s.expect("use_bidirectional_attention", False)
    full, sliding = ropes(s)
    shape = decoder_hyperparameters(s, full)
    n_layers, head_dim = shape["block_count"], shape["attention.key_length"]
    period = s.count("sliding_window_pattern", GLOBAL_PERIOD)
    slides = layer_types(s, n_layers) or all_but_every(period, n_layers)
    # GGUF always has a window, though all layers may see everything.
    shape["attention.sliding_window"] = s.count("sliding_window", None if any(slides) else shape["context_length"])
    shape |= pattern_hyperparameters(slides, GLOBAL_PERIOD)
    if (local_base := sliding.number("rope_theta")) != LOCAL_ROPE_BASE:
        shape["rope.freq_base_swa"] = local_base
    scalar = s.number("query_pre_attn_scalar")
    expected = shape["embedding_length"] / shape["attention.head_count"] if n_layers == LAYERS_OF_27B else head_dim
    if scalar != expected:
        shape["attention.scale"] = scalar**-0.5
    return shape


def ropes(s: Settings) -> tuple[Settings, Settings]:
    """The rotary embeddings of layers that see everything and of those that slide, see `ropes_by_kind`."""
    return ropes_by_kind(s, s.get("rope_theta", ROPE_BASE), s.get("rope_local_base_freq", LOCAL_ROPE_BASE))


def _settings(c: ModelConfig) -> dict[str, Any]:
    return decoder_settings(c) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _pre_attention_scalar(c),
        "sliding_window": next((window for window in c.windows if window), c.n_ctx_train),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in c.windows],
    }


def _pre_attention_scalar(c: ModelConfig) -> int:
    scalar = round(min(1e9, 1 / c.attention_scale / c.attention_scale))
    if not math.isclose(scalar * c.attention_scale**2, 1, rel_tol=1e-4):
        raise UnsupportedError(
            f"attention is scaled by {c.attention_scale:g}; transformers takes one over the root of a whole number only"
        )
    return scalar


HUGGING_FACE = HuggingFace(
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_type="gemma3_text",
    hyperparameters=hyperparameters,
    settings=_settings,
    tensors=DECODER
    | HEAD_NORMS
    | {
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
        "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    },
    # Its checkpoints hold how much a norm's weight differs from one.
    offsets=dict.fromkeys(NORMS, 1.0),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
    },
    null_stays=("sliding_window",),
    rope=lambda s: ropes(s)[0],
)  # fmt: skip
