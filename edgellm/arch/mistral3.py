"""Ministral 3 (Mistral AI, 2025): a Llama stretched by YaRN, whose queries grow with the position (as in Llama 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import Keys, ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import DEFAULTS, HuggingFace, Settings, decoder_hyperparameters, window_hyperparameters
from edgellm.arch.huggingface_rope import rope_settings
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    keys = Keys(metadata)
    beta = keys.number("attention.temperature_scale", 0.0, zero=0.0)
    length = keys.count("attention.temperature_length", keys.count("rope.scaling.original_context_length", 1))
    return decoder_config(metadata, temperature=(beta, length) if beta else None)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    rope = rope_settings(s)
    shape = decoder_hyperparameters(s, rope)
    if rope.get("llama_4_scaling_beta"):
        shape["attention.temperature_scale"] = rope.number("llama_4_scaling_beta")
        shape["attention.temperature_length"] = rope.count("original_max_position_embeddings")
    window = None if s.get("sliding_window") is None else s.count("sliding_window")
    return shape | window_hyperparameters(window, [window is not None] * shape["block_count"])


YARN = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    model_type="ministral3",
    hyperparameters=_hyperparameters,
    paired=("attn_q", "attn_k"),
    defaults=DEFAULTS
    | {
        "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "rope_parameters": YARN,
    },
)  # fmt: skip
