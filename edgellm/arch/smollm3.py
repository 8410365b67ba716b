"""SmolLM 3 (Hugging Face, 2025): a Llama that turns nothing in every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, all_but_every, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import (
    ATTENTION_BIASES,
    DEFAULTS,
    FEED_FORWARD_BIASES,
    HuggingFace,
    Settings,
    decoder_hyperparameters,
    layer_types,
    window_hyperparameters,
)
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import Graph, Value

PERIOD = 4  # of so many layers, the last turns nothing


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    return decoder_config(metadata, rotates=keys.layers("rope.layers", keys.count("block_count"), PERIOD))


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    shape = decoder_hyperparameters(s)
    n_layers = shape["block_count"]
    usual = all_but_every(PERIOD, n_layers)
    period = s.count("no_rope_layer_interval")
    turned = s.get("no_rope_layers", all_but_every(period, n_layers))
    if not isinstance(turned, list) or len(turned) != n_layers or not all(x in (0, 1) for x in turned):
        raise FormatError(f"config.json: no_rope_layers is {turned!r:.60}; expected 0 or 1 for {n_layers} layers")
    if (turned := [bool(x) for x in turned]) != usual:
        shape["rope.layers"] = turned
    window = s.count("sliding_window") if s.flag("use_sliding_window") and s.get("sliding_window") is not None else None
    slides = layer_types(s, n_layers) or [window is not None and not turns for turns in turned]
    return shape | window_hyperparameters(window, slides)


HUGGING_FACE = HuggingFace(
    classes=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    hyperparameters=_hyperparameters,
    paired=("attn_q", "attn_k"),
    biases=ATTENTION_BIASES | FEED_FORWARD_BIASES,
    defaults=DEFAULTS
    | {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "no_rope_layer_interval": PERIOD, "rope_theta": 2000000.0,
    },
)  # fmt: skip
