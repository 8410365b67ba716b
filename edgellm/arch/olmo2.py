"""OLMo 2 and 3 (Ai2, 2024 and 2025): norms after attention and feed-forward, and of queries and keys as a whole.

Version 3 has windows, and stretches positions in the layers that see everything alone.
"""

from __future__ import annotations

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
    layer_types,
    norms_after,
    window_hyperparameters,
)
from edgellm.arch.huggingface_rope import ropes_by_kind
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.rope import frequencies
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.errors import UnsupportedError, shown
from edgellm.graph.nodes import Graph, Rotation, Value

STYLE = Style(order="after", head_norms="rows")
PERIOD = 4  # of so many layers with windows, the last sees everything
ROPE_BASE = 500000.0


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    return decoder_config(
        metadata,
        STYLE,
        windows=keys.windows(keys.count("block_count"), PERIOD),
        rope_base_local=keys.number("rope.freq_base_swa", keys.number("rope.freq_base", 10000.0)),
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    nearby = Rotation(frequencies(c.rope_base_local or c.rope_base, c.n_rot), interleaved=False)
    return decoder(g, w, c, rotation_of(w, c, interleaved=False), nearby)


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s)


HUGGING_FACE = HuggingFace(
    classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    hyperparameters=_hyperparameters,
    tensors=norms_after(DECODER | HEAD_NORMS),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS | {"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
)


def _ropes(s: Settings) -> tuple[Settings, Settings]:
    sliding = s.section("rope_parameters").section("sliding_attention")
    if sliding.get("rope_theta") is None and (base := s.get("rope_theta")) != ROPE_BASE:
        raise UnsupportedError(
            f"config.json: rope_theta is {shown(base)}: version 4 of transformers takes it for all layers, version 5 "
            f"for those that see everything, and {ROPE_BASE} for those with a window; say which in rope_parameters, as "
            'full_attention: {"rope_theta": ...} and sliding_attention: {"rope_theta": ...}'
        )
    return ropes_by_kind(s, s.get("rope_theta"), ROPE_BASE, known=("default", "linear", "yarn", "llama3"))


def _third_hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    full, sliding = _ropes(s)
    shape = decoder_hyperparameters(s, full)
    n_layers = shape["block_count"]
    slides = layer_types(s, n_layers) or all_but_every(PERIOD, n_layers)
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    if (base := sliding.number("rope_theta")) != full.number("rope_theta"):
        shape["rope.freq_base_swa"] = base
    return shape | window_hyperparameters(window, slides, PERIOD)


VERSION_3 = HuggingFace(
    classes=("Olmo3ForCausalLM",),
    model_type="olmo3",
    hyperparameters=_third_hyperparameters,
    tensors=HUGGING_FACE.tensors,
    biases=ATTENTION_BIASES,
    defaults={**HUGGING_FACE.defaults, "sliding_window": 4096, "rope_theta": ROPE_BASE},
    null_stays=("num_key_value_heads", "sliding_window"),
    rope=lambda s: _ropes(s)[0],
)
