"""ERNIE 4.5 (Baidu, 2025), dense: a Llama that turns neighbouring dimensions, as its checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.arch.config import ModelConfig, decoder_config
from edgellm.arch.decoder import decoder
from edgellm.arch.huggingface import DEFAULTS, HuggingFace, Settings, decoder_hyperparameters
from edgellm.arch.parts import logits_head, rotation_of
from edgellm.arch.weights import Weights
from edgellm.graph.nodes import Graph, Value


def configure(metadata: Mapping[str, Any]) -> ModelConfig:
    return decoder_config(metadata)


def body(g: Graph, w: Weights, c: ModelConfig) -> Value:
    return decoder(g, w, c, rotation_of(w, c, interleaved=True))


head = logits_head


def _hyperparameters(s: Settings) -> dict[str, Any]:
    s.expect("hidden_act", "silu")
    return decoder_hyperparameters(s)


LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
HUGGING_FACE = HuggingFace(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    model_type="ernie4_5",
    hyperparameters=_hyperparameters,
    biases=dict.fromkeys(LINEARS, "use_bias"),
    defaults=DEFAULTS
    | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": True,
    },
)  # fmt: skip
