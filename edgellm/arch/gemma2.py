"""Gemma 2 (Google, 2024): norms before and after each half of a layer, and soft caps of scores and logits.

Every other layer, from the first on, looks back over a window.
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
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
    pattern_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.style import Style
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value

STYLE = Style(order="both", activation="gelu")
PERIOD = 2  # of so many layers, the last sees everything
ATTENTION_CAP, LOGIT_CAP = 50.0, 30.0  # where a file says nothing
WINDOW = 4096
LAYERS_OF_27B = 46  # which scales its queries by the width per head instead of the heads' own size


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    more: dict[str, Any] = {}
    n_layers, n_embd = keys.count("block_count"), keys.count("embedding_length")
    if n_layers == LAYERS_OF_27B and not keys.has("attention.scale"):
        more["attention_scale"] = math.sqrt(keys.count("attention.head_count") / n_embd)
    return decoder_config(
        metadata,
        STYLE,
        caps=True,
        attention_cap=keys.cap("attn_logit_softcapping", ATTENTION_CAP),
        logit_cap=keys.cap("final_logit_softcapping", LOGIT_CAP),
        windows=keys.windows(n_layers, PERIOD, WINDOW),
        embedding_scale=math.sqrt(n_embd),
        **more,
    )


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=False))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_activation", "gelu_pytorch_tanh")
    s.expect("use_bidirectional_attention", False)
    shape = decoder_hyperparameters(s)
    n_layers = shape["block_count"]
    slides = layer_types(s, n_layers) or all_but_every(PERIOD, n_layers)
    # GGUF always has a window, though all layers may see everything.
    shape["attention.sliding_window"] = s.count("sliding_window", None if any(slides) else shape["context_length"])
    shape |= pattern_hyperparameters(slides, PERIOD)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        shape[name] = 0.0 if s.get(name) is None else s.number(name)
    return shape | {"attention.scale": s.number("query_pre_attn_scalar") ** -0.5}


NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "output_norm")
POST_NORMS = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
HUGGING_FACE = HuggingFace(
    classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    hyperparameters=_hyperparameters,
    tensors=DECODER | POST_NORMS,
    # Its checkpoints hold how much a norm's weight differs from one.
    offsets=dict.fromkeys(NORMS, 1.0),
    biases=ATTENTION_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "sliding_window": WINDOW,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": ATTENTION_CAP, "final_logit_softcapping": LOGIT_CAP,
        "tie_word_embeddings": True,
    },
    null_stays=("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"),
)  # fmt: skip
